"""Everything of vLLM that rlsys relies on: names, how they are called, what is read, replaced and set.

The one list of it. `test_vllm_uses.py` holds it against our code and against the installed wheel, `test_gpu_wheel.py`
against the wheel for GPUs. Before a change of vLLM's version, read it; after one, both tests say what is gone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Use:
    """One name of vLLM, and what rlsys does with it.

    Attributes:
        module: the module that our code imports it from, or that defines it.
        name: a class, a function, a module or an alias.
        is_imported: whether our code imports it. Of other classes it only meets objects.
        calls: how it or its members are called. Positional arguments are the names of vLLM's parameters, in their
            order; only the names of keyword arguments count. A method that we override is in the list as we call
            `super()`, or as vLLM calls ours.
        reads: members that are read or set, also those of enumerations.
        replaces: members that rlsys puts a function of its own in the place of.
        values: what an alias of literals must allow.
    """

    module: str
    name: str
    is_imported: bool = True
    calls: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    values: tuple[object, ...] = ()


FRONT_END = [
    Use(
        "vllm",
        "EngineArgs",
        calls=(
            "EngineArgs(model=_, skip_tokenizer_init=_, dtype=_, tensor_parallel_size=_, trust_remote_code=_, "
            "max_model_len=_, max_num_seqs=_, enforce_eager=_, enable_chunked_prefill=_, logprobs_mode=_, "
            "weight_transfer_config=_, distributed_executor_backend=_, worker_extension_cls=_, generation_config=_, "
            "seed=_, async_scheduling=_, scheduler_cls=_, "
            # The first on GPUs, the others on CPUs.
            "gpu_memory_utilization=_, kv_cache_memory_bytes=_, block_size=_, ir_op_priority=_, "
            # Only for adapters.
            "enable_lora=_, max_loras=_, max_cpu_loras=_, max_lora_rank=_, lora_target_modules=_, quantization=_)",
        ),
        reads=("model", "create_engine_config"),
    ),
    Use("vllm.config", "VllmConfig", is_imported=False, reads=("model_config", "parallel_config")),
    Use("vllm.config.weight_transfer", "WeightTransferConfig", calls=("WeightTransferConfig(backend=_)",)),
    Use("vllm.config.model", "LogprobsMode", is_imported=False, values=("processed_logprobs",)),
    Use("vllm.config.parallel", "DistributedExecutorBackend", is_imported=False, values=("mp", "uni")),
    Use("vllm.config.lora", "MaxLoRARanks", is_imported=False, values=(1, 8, 16, 32, 64, 128, 256, 320, 512)),
    Use("vllm.v1.engine", "PauseMode", is_imported=False, values=("keep",)),
    Use("vllm.v1.executor.abstract", "Executor", calls=("get_class(vllm_config)",)),
    Use(
        "vllm.v1.engine.core",
        "EngineCore",
        calls=(
            "EngineCore(vllm_config, executor_class, log_stats=_)",
            "post_step(model_executed)",
            "preprocess_add_request(request)",
            "add_request(request, request_wave)",
            "abort_requests(request_ids)",
            "pause_scheduler(mode, clear_cache)",
            "resume_scheduler()",
            "collective_rpc(method, timeout, args, kwargs)",
            "add_lora(lora_request)",
            "remove_lora(lora_id)",
            "shutdown()",
        ),
        reads=("step_fn", "scheduler", "batch_queue", "vllm_config"),
    ),
    Use(
        "vllm.v1.engine",
        "EngineCoreRequest",
        calls=(
            "EngineCoreRequest(request_id=_, prompt_token_ids=_, mm_features=_, sampling_params=_, pooling_params=_, "
            "arrival_time=_, lora_request=_, cache_salt=_, data_parallel_rank=_)",
        ),
        reads=("cache_salt", "request_id"),
    ),
    Use(
        "vllm",
        "SamplingParams",
        calls=(
            "SamplingParams(temperature=_, max_tokens=_, seed=_, ignore_eos=_, stop_token_ids=_, logprobs=_, "
            "prompt_logprobs=_, detokenize=_)",
        ),
    ),
    Use(
        "vllm.lora.request",
        "LoRARequest",
        calls=("LoRARequest(lora_name, lora_int_id, lora_path)",),
        reads=("lora_int_id", "lora_name"),
    ),
]

SCHEDULER_CALLS = (
    "set_pause_state(pause_state)",
    "has_requests()",
    "update_from_output(scheduler_output, model_runner_output)",
)
SCHEDULER = [
    Use(
        "vllm.v1.core.sched.scheduler",
        "Scheduler",
        # The last two on CPUs only, to share prompts.
        calls=(*SCHEDULER_CALLS, "_handle_blocked_waiting_request(request)", "_get_local_prefix_cache_hit(request)"),
        reads=("requests", "pause_state", "kv_cache_manager", "max_model_len"),
    ),
    # It must inherit what our mixin overrides.
    Use(
        "vllm.v1.core.sched.async_scheduler",
        "AsyncScheduler",
        calls=SCHEDULER_CALLS,
        reads=("requests", "pause_state"),
    ),
    Use(
        "vllm.v1.core.kv_cache_manager",
        "KVCacheManager",
        calls=(
            "allocate_slots(request, num_new_tokens, num_lookahead_tokens=_)",
            "prefix_cache_lookup_enabled(request)",
        ),
        reads=("coordinator", "empty_kv_cache_blocks"),
        replaces=("allocate_slots",),
    ),
    Use("vllm.v1.core.kv_cache_manager", "KVCacheBlocks", calls=("KVCacheBlocks(blocks=_)",)),
    Use("vllm.v1.core.single_type_kv_cache_manager", "FullAttentionManager", reads=("block_size", "req_to_blocks")),
    Use("vllm.v1.core.sched.interface", "PauseState", reads=("UNPAUSED", "PAUSED_ALL")),
    Use(
        "vllm.v1.engine",
        "EngineCoreOutput",
        reads=(
            "request_id",
            "new_token_ids",
            "new_logprobs",
            "new_prompt_logprobs_tensors",
            "finish_reason",
            "finished",
        ),
    ),
    Use("vllm.v1.engine", "EngineCoreOutputs", reads=("outputs",)),
    Use("vllm.v1.core.sched.output", "SchedulerOutput", reads=("num_scheduled_tokens",)),
    Use("vllm.v1.outputs", "ModelRunnerOutput", reads=("logprobs", "sampled_token_ids", "req_id_to_index")),
    Use("vllm.v1.outputs", "LogprobsLists", is_imported=False, reads=("logprobs",)),
    Use("vllm.v1.outputs", "LogprobsTensors", is_imported=False, reads=("logprobs",)),
    Use(
        "vllm.v1.request",
        "Request",
        calls=("update_block_hashes()", "append_output_token_ids(token_ids)"),
        reads=(
            *("num_computed_tokens", "cache_salt", "block_hashes"),
            *("request_id", "prompt_token_ids", "num_prompt_tokens", "lora_request", "sampling_params"),
            *("num_in_flight_tokens", "num_output_tokens", "num_tokens", "max_tokens"),
        ),
    ),
]

WORKER_PROCESS = [
    Use(
        "vllm.v1.worker.gpu_worker",
        "Worker",
        is_imported=False,
        reads=("weight_transfer_engine", "model_runner"),
    ),
    # vLLM has two model runners: on GPUs it takes the first ("V2"), and without Triton, as on our CPUs, the second.
    Use("vllm.v1.worker.gpu.model_runner", "GPUModelRunner", is_imported=False, reads=("lora_manager",)),
    Use("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", is_imported=False, reads=("lora_manager",)),
    Use(
        "vllm.lora.worker_manager",
        "LRUCacheWorkerLoRAManager",
        is_imported=False,
        reads=("_adapter_manager",),
    ),
    Use(
        "vllm.lora.model_manager",
        "LRUCacheLoRAModelManager",
        is_imported=False,
        calls=("get_adapter(adapter_id)",),
        reads=("lora_index_to_id",),
    ),
    Use("vllm.lora.lora_model", "LoRAModel", is_imported=False, reads=("loras",)),
    Use("vllm.lora.lora_weights", "LoRALayerWeights", is_imported=False, reads=("lora_a", "lora_b")),
]

WEIGHTS = [
    Use("vllm.distributed.weight_transfer.base", "WeightTransferInitInfo"),
    Use("vllm.distributed.weight_transfer.base", "WeightTransferUpdateInfo"),
    Use(
        "vllm.distributed.weight_transfer.factory",
        "WeightTransferEngineFactory",
        calls=("register_engine(name, module_path_or_cls)",),
        reads=("_registry",),
    ),
    Use(
        "vllm.distributed.weight_transfer.nccl_engine",
        "NCCLWeightTransferEngine",
        calls=(
            "init_transfer_engine(init_info)",
            "start_weight_update()",
            "receive_weights(update_info)",
            "finish_weight_update()",
            "shutdown()",
        ),
        reads=("init_info_cls", "update_info_cls", "model", "device", "parallel_config"),
    ),
    Use("vllm.config.parallel", "ParallelConfig", is_imported=False, reads=("rank", "world_size")),
    Use(
        "vllm.distributed.parallel_state",
        "destroy_distributed_environment",
        calls=("destroy_distributed_environment()",),
    ),
    Use("vllm.distributed.parallel_state", "destroy_model_parallel", calls=("destroy_model_parallel()",)),
    Use(
        "vllm.distributed.weight_transfer.nccl_common",
        "stateless_init_process_group",
        calls=("stateless_init_process_group(master_address, master_port, rank, world_size, device)",),
    ),
    Use(
        "vllm.distributed.device_communicators.pynccl",
        "PyNcclCommunicator",
        is_imported=False,
        calls=("broadcast(tensor, src=_, stream=_)", "destroy()"),
        reads=("disabled",),
    ),
    Use(
        "vllm.model_executor.model_loader.mtp_validation",
        "disable_mtp_completeness_check",
        calls=("disable_mtp_completeness_check()",),
    ),
    Use(
        "vllm.model_executor.model_loader.reload.layerwise",
        "get_layerwise_info",
        calls=("get_layerwise_info(layer)",),
    ),
    Use(
        "vllm.model_executor.model_loader.reload",
        "layerwise",
        calls=("get_layer_tensors(layer)", "get_layerwise_info(layer)", "_layerwise_process(layer, info)"),
        replaces=("get_numel_loaded",),
    ),
    Use(
        "vllm.model_executor.model_loader.reload.meta",
        "materialize_meta_tensor",
        calls=("materialize_meta_tensor(meta_tensor)",),
    ),
    Use(
        "vllm.model_executor.model_loader.reload.types",
        "LayerReloadingInfo",
        is_imported=False,
        calls=("can_load()",),
        reads=("restore_device", "load_numel", "load_numel_total"),
    ),
]

# Repairs of the CPU backend. GPUs run none of them, but import the modules all the same.
CPU_REPAIRS = [
    Use("vllm.platforms", "current_platform", calls=("is_cpu()",)),
    Use(
        "vllm.lora.punica_wrapper.punica_cpu",
        "PunicaWrapperCPU",
        calls=("add_lora_logits(y, x, lora_a_stacked, lora_b_stacked, scale)",),
        replaces=("add_lora_logits",),
    ),
    Use(
        "vllm.model_executor.layers.rotary_embedding.base",
        "RotaryEmbedding",
        calls=("forward_cpu(positions, query, key)", "forward_native(positions, query, key)"),
        replaces=("forward_cpu",),
    ),
    Use(
        "vllm.model_executor.layers.fused_moe",
        "unquantized_fused_moe_method",
        calls=("select_unquantized_moe_backend(moe_config)",),
        replaces=("select_unquantized_moe_backend",),
    ),
    Use("vllm.v1.sample", "sampler", replaces=("batched_count_greater_than",)),
    Use("vllm", "ir", reads=("ops",)),
    Use("vllm.ir", "ops", is_imported=False, reads=("rms_norm", "fused_add_rms_norm")),
    Use(
        "vllm.ir.op",
        "IrOp",
        is_imported=False,
        calls=("register_impl(provider, supports_args=_)", "register_impl(provider, supports_args=_, inplace=_)"),
    ),
    Use("vllm.config.kernel", "IrOpPriorityConfig", is_imported=False, reads=("rms_norm", "fused_add_rms_norm")),
    Use(
        "vllm.model_executor.layers.fused_moe.config",
        "FusedMoEConfig",
        is_imported=False,
        reads=("is_lora_enabled",),
    ),
    Use(
        "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method",
        "UnquantizedFusedMoEMethod",
        is_imported=False,
        reads=("unquantized_backend", "moe_kernel"),
    ),
    Use(
        "vllm.model_executor.layers.fused_moe.oracle.unquantized",
        "UnquantizedMoeBackend",
        is_imported=False,
        reads=("CPU",),
    ),
]

USES = [*FRONT_END, *SCHEDULER, *WORKER_PROCESS, *WEIGHTS, *CPU_REPAIRS]

# Environment variables that rlsys sets, or names in an error (the last).
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL",
    "VLLM_NO_USAGE_STATS",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_DISABLE_PYNCCL",
    "VLLM_CACHE_ROOT",  # looked at by `rlsys doctor` alone
}
