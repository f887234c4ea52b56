"""TRL's GRPO: `GRPOConfig`, `ModelConfig`, `ScriptArguments` and the script's own options.

Names and defaults as in TRL 0.18.0, 0.19.0, 1.0.0, 1.3.0, 1.8.0, 1.10.0 and 1.16.0 (trl/trainer/grpo_config.py,
trl/trainer/model_config.py, trl/scripts/), the inherited ones as in transformers' TrainingArguments.
"""

from __future__ import annotations

from typing import Any

from rlsys.commands.importers.dialects import trl_batch, trl_loss, trl_parts
from rlsys.commands.importers.options import (
    ABSENT,
    NONE_STATED,
    ByVersion,
    Dialect,
    Option,
    UnsupportedError,
    by_rule,
    converted,
    ignored,
    same,
    unsupported,
)
from rlsys.commands.importers.recipe import Recipe

VERSIONS = ("0.18", "0.19", "1.0", "1.3", "1.8", "1.10", "1.16")
SAMPLING = "it changes the distribution that is sampled, and the learner could no longer check it (README, Limits)"
HUB = "nothing is pushed; checkpoints/step-N/policy is a Hugging Face folder that can be uploaded"
OPTIMIZER = "the optimizer is AdamW with float32 state; learner.offload_optimizer=true moves that to the CPU"
OWN_ENGINES = "rlsys starts its own engines"
OWN_LOG = "every step is written to metrics.jsonl"
ENGINE_ALONE = "vLLM always generates here"
LOCAL = "processes are started by Ray"
SINCE_1_0 = "1.0"


def absent_before(version: str, value: Any) -> ByVersion:
    """The default of an option that came with `version`."""
    return ByVersion({version: value})


def _temperature(value: float) -> float:
    if not float(value) > 0:
        raise UnsupportedError("training samples need a positive temperature here (evaluation is greedy)")
    return float(value)


BATCH = {
    "per_device_train_batch_size": by_rule("train.prompts_per_step", default=8),
    "gradient_accumulation_steps": by_rule(default=1, also=("train.prompts_per_step", "train.minibatches_per_step")),
    "num_processes": by_rule(default=NONE_STATED, also=("train.prompts_per_step",)),  # accelerate's
    "generation_batch_size": by_rule("train.prompts_per_step", "train.minibatches_per_step", default=None),
    "steps_per_generation": by_rule("train.prompts_per_step", "train.minibatches_per_step", default=None),
    "num_generations": by_rule("train.samples_per_prompt", default=8, also=("train.prompts_per_step",)),
    "num_iterations": by_rule("train.updates_per_step", default=1),
    "max_steps": by_rule("train.num_steps", default=-1),
    "num_train_epochs": by_rule("train.num_steps", default=3.0),
}
OPTIMIZATION = {
    "learning_rate": same("learner.lr", 1e-6),
    "lr_scheduler_type": by_rule("learner.lr_schedule", default="linear"),
    "lr_scheduler_kwargs": unsupported("schedules have no options here", neutral=(None,)),
    "warmup_steps": by_rule("learner.warmup_steps", default=0),
    "warmup_ratio": by_rule("learner.warmup_steps", default=0.0),
    "weight_decay": same("learner.weight_decay", 0.0),
    "adam_beta1": by_rule("learner.betas", default=0.9),
    "adam_beta2": by_rule("learner.betas", default=0.999),
    "adam_epsilon": same("learner.eps", 1e-8),
    "max_grad_norm": same("learner.max_grad_norm", 1.0),
    "optim": unsupported(OPTIMIZER, "adamw_torch_fused", ("adamw_torch_fused", "adamw_torch", "adamw_hf", "adamw")),
    "optim_args": unsupported(OPTIMIZER),
    "gradient_checkpointing": same("learner.gradient_checkpointing", ByVersion({"0.18": False, SINCE_1_0: True})),
    "bf16": by_rule("learner.dtype", default=ByVersion({"0.18": False, "0.19": None})),
    "fp16": by_rule(default=False, also=("learner.dtype",)),
    "seed": same("seed", 42),
    "deepspeed": converted("learner.zero_stage", None, trl_parts.zero_stage),
    "neftune_noise_alpha": unsupported("embeddings get no noise here"),
    "label_smoothing_factor": unsupported("there are no labels to smooth", 0.0, (0, 0.0)),
}
LOSS = {
    "loss_type": by_rule(
        "algorithm.aggregation", "algorithm.policy_loss.name", default=ByVersion({"0.18": "bnpo", SINCE_1_0: "dapo"})
    ),
    "beta": by_rule("algorithm.kl.coef", default=ByVersion({"0.18": 0.04, "0.19": 0.0})),
    "use_bias_correction_kl": by_rule("algorithm.kl.unbiased", default=ByVersion({SINCE_1_0: False, "1.10": True})),
    "epsilon": by_rule("algorithm.policy_loss.clip_low", default=0.2, also=("algorithm.policy_loss.clip_high",)),
    "epsilon_high": by_rule("algorithm.policy_loss.clip_high", "algorithm.policy_loss.ratio_max", default=None),
    "delta": by_rule("algorithm.policy_loss.dual_clip", default=None),
    "sapo_temperature_pos": by_rule("algorithm.policy_loss.temperature_pos", default=absent_before(SINCE_1_0, 1.0)),
    "sapo_temperature_neg": by_rule("algorithm.policy_loss.temperature_neg", default=absent_before(SINCE_1_0, 1.05)),
    **{
        f"vespo_{name}": unsupported("there is no vespo here", absent_before(SINCE_1_0, value), (value, int(value)))
        for name, value in {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0}.items()
    },
    "importance_sampling_level": by_rule(
        default=absent_before(SINCE_1_0, "token"), also=("algorithm.policy_loss.name",)
    ),
    "scale_rewards": by_rule("algorithm.advantage.scale", default=ByVersion({"0.18": True, SINCE_1_0: "group"})),
    "multi_objective_aggregation": by_rule(
        "algorithm.advantage.name", default=absent_before(SINCE_1_0, "sum_then_normalize")
    ),
    "mask_truncated_completions": same("algorithm.groups.mask_truncated", False),
    "top_entropy_quantile": same("algorithm.entropy.top_quantile", absent_before(SINCE_1_0, 1.0)),
    "entropy_coef": by_rule("algorithm.entropy.coef", default=absent_before("1.8", 0.0)),
    "use_adaptive_entropy": by_rule("algorithm.entropy.target", default=absent_before("1.8", False)),
    "entropy_coef_min": by_rule(default=absent_before("1.8", 0.0)),
    "entropy_coef_max": by_rule("algorithm.entropy.max_coef", default=absent_before("1.8", 1.0)),
    "entropy_coef_delta": by_rule("algorithm.entropy.delta", default=absent_before("1.8", 0.005)),
    "entropy_target": by_rule("algorithm.entropy.target", default=absent_before("1.8", 0.2)),
    "sync_ref_model": by_rule("algorithm.refresh.every", default=False),
    "ref_model_mixup_alpha": by_rule("algorithm.refresh.alpha", default=0.6),
    "ref_model_sync_steps": by_rule("algorithm.refresh.every", default=512),
    "vllm_importance_sampling_correction": by_rule("algorithm.corrections", default=absent_before(SINCE_1_0, True)),
    "vllm_importance_sampling_mode": by_rule(
        "algorithm.corrections", default=absent_before(SINCE_1_0, "sequence_mask")
    ),
    "vllm_importance_sampling_clip_max": by_rule("algorithm.corrections", default=absent_before(SINCE_1_0, 3.0)),
    "vllm_importance_sampling_clip_min": by_rule("algorithm.corrections", default=absent_before("1.8", None)),
    "off_policy_mask_threshold": by_rule("algorithm.corrections", default=absent_before(SINCE_1_0, None)),
    "router_aux_loss_coef": unsupported(
        "experts are not balanced by a loss here", ByVersion({"1.8": 0.001, "1.16": None}), (None, 0, 0.0)
    ),
    "cast_lm_head_to_fp32": unsupported("the head has the policy's dtype here", absent_before(SINCE_1_0, False)),
    "disable_dropout": ignored("the policy is trained without dropout; a model that has some is refused at the start"),
}
GENERATION = {
    "max_prompt_length": by_rule("data.max_prompt_tokens", default=ByVersion({"0.18": 512, SINCE_1_0: ABSENT})),
    "max_completion_length": same("rollout.max_response_tokens", ByVersion({"0.18": 256, "1.10": 512})),
    "temperature": converted("rollout.temperature", 1.0, _temperature),
    "top_p": unsupported(SAMPLING, 1.0, (None, 1, 1.0)),
    "top_k": unsupported(SAMPLING, ByVersion({"0.18": None, SINCE_1_0: 0}), (None, 0, -1)),
    "min_p": unsupported(SAMPLING, None, (None, 0, 0.0)),
    "repetition_penalty": unsupported(SAMPLING, 1.0, (None, 1, 1.0)),
    "generation_kwargs": unsupported(SAMPLING, None, (None, {})),
    "chat_template_kwargs": converted("data.chat_template_options", absent_before(SINCE_1_0, None), dict),
    "use_vllm": by_rule(default=False, also=("algorithm.corrections",)),
    "vllm_mode": by_rule(default=ByVersion({"0.18": "server", SINCE_1_0: "colocate"})),
    "vllm_gpu_memory_utilization": by_rule("rollout.gpu_memory_utilization", default=0.3),
    "vllm_tensor_parallel_size": by_rule("rollout.tensor_parallel_size", default=1),
    "vllm_structured_outputs_regex": unsupported("decoding is not guided here; the regex reward can ask for a form"),
    "vllm_model_impl": unsupported("engines run vLLM's own models", absent_before(SINCE_1_0, "vllm"), ("vllm", "auto")),
    "max_tool_calling_iterations": unsupported("tools are not called in training here", absent_before(SINCE_1_0, None)),
    "pad_to_multiple_of": ignored("nothing is padded"),
    "cache_implementation": ignored(ENGINE_ALONE),
    "use_transformers_continuous_batching": ignored(ENGINE_ALONE),
    "transformers_continuous_batching_config": ignored(ENGINE_ALONE),
    "ds3_gather_for_generation": ignored(ENGINE_ALONE),
    "use_cache": ignored(ENGINE_ALONE),
    **dict.fromkeys(
        (
            "vllm_server_base_url",
            "vllm_server_host",
            "vllm_server_port",
            "vllm_device",
            "vllm_server_timeout",
            "vllm_group_port",
            "vllm_enable_sleep_mode",
            "vllm_dtype",
            "vllm_enable_prefix_caching",
        ),
        ignored(OWN_ENGINES),
    ),
    "vllm_max_model_length": ignored("an engine's context is the longest prompt and response"),
}
MODEL = {
    "model_name_or_path": same("model.path", NONE_STATED),
    "model_revision": unsupported("the default branch is loaded; give a folder for another", "main", (None, "main")),
    "trust_remote_code": same("model.trust_remote_code", False),
    "dtype": by_rule(default=ByVersion({"0.18": None, SINCE_1_0: "float32"}), also=("learner.dtype",)),
    "model_init_kwargs": unsupported(
        "models are loaded as they are; give a folder with another config", None, (None, {})
    ),
    "attn_implementation": ignored("learner.packing chooses the attention"),
    "use_peft": by_rule("learner.lora.rank", default=False),
    "lora_r": by_rule("learner.lora.rank", default=16),
    "lora_alpha": by_rule("learner.lora.alpha", default=32),
    "lora_dropout": by_rule("learner.lora.dropout", default=0.05),
    "lora_target_modules": by_rule("learner.lora.target_modules", default=None),
    "lora_target_parameters": by_rule(default=absent_before(SINCE_1_0, None)),
    "lora_modules_to_save": by_rule("learner.lora.modules_to_save", default=None),
    "lora_task_type": unsupported("policies are causal models", "CAUSAL_LM", ("CAUSAL_LM",)),
    "use_rslora": by_rule("learner.lora.use_rslora", default=False),
    "use_dora": by_rule("learner.lora.use_dora", default=False),
    "load_in_8bit": by_rule("learner.lora.quantize_base", default=False),
    "load_in_4bit": by_rule("learner.lora.quantize_base", default=False),
    "bnb_4bit_quant_type": by_rule("learner.lora.quantize_base", default="nf4"),
    "use_bnb_nested_quant": by_rule(default=False),
    "bnb_4bit_quant_storage": ignored("quantized weights are stored as bitsandbytes does by itself"),
}
DATA = {
    "dataset_name": by_rule("data.train", "data.eval", default=None),
    "dataset_config": by_rule(default=None, also=("data.train", "data.eval")),
    "dataset_train_split": by_rule(default="train", also=("data.train",)),
    "dataset_test_split": by_rule(default="test", also=("data.eval",)),
    "datasets": by_rule("data.train", default=NONE_STATED),
    "dataset_streaming": unsupported("data is loaded whole", absent_before("0.19", False)),
    "streaming": unsupported("data is loaded whole", False),
    "test_split_size": unsupported("held-out rows are not split off; set data.eval"),
    "shuffle_dataset": same("data.shuffle", True),
    "data_seed": unsupported("prompts are drawn by `seed`"),
    "reward_funcs": by_rule("rewards", default=None),
    "reward_weights": by_rule("rewards", default=None),
    "reward_model_name_or_path": by_rule("rewards", default=None),
}
RUN = {
    "eval_strategy": by_rule("eval.every", default="no", also=("data.eval",)),
    "eval_steps": by_rule("eval.every", default=None),
    "eval_on_start": ignored("an evaluated run is evaluated before training too"),
    "num_generations_eval": by_rule("eval.num_samples", default=absent_before(SINCE_1_0, None)),
    "save_strategy": by_rule("checkpoint.every", default="steps"),
    "save_steps": by_rule("checkpoint.every", default=500),
    "save_total_limit": by_rule("checkpoint.keep", default=None),
    "save_only_model": unsupported("checkpoints always hold what a run needs to go on", False),
    "load_best_model_at_end": unsupported("the last policy is kept; choose another by metrics.jsonl", False),
    "report_to": by_rule("logging.trackers", default=ByVersion({"0.18": "all", SINCE_1_0: "none"})),
    "push_to_hub": unsupported(HUB, False),
    "resume_from_checkpoint": ignored("resume=auto with run_dir=... continues a run"),
    "output_dir": ignored("a run goes to runs/NAME/TIME; run_dir=... chooses"),
    "overwrite_output_dir": ignored("a folder that holds a run is never written over"),
    "run_name": ignored("a run is named by its folder"),
    "full_determinism": unsupported("rollout.seeded=true repeats sampling; kernels are not fixed", False),
    "auto_find_batch_size": unsupported("microbatches are learner.microbatch_tokens tokens", False),
    "fsdp": ignored("DeepSpeed shards: learner.zero_stage=3"),
    "fsdp_config": ignored("DeepSpeed shards: learner.zero_stage=3"),
    "remove_unused_columns": ignored("rewards see every column"),
    "do_train": ignored("rlsys train trains, rlsys eval evaluates"),
    "do_eval": ignored("eval_strategy decides; rlsys eval evaluates afterwards"),
    "do_predict": ignored("rlsys eval evaluates"),
    "log_completions": ignored("rollouts/step-N.jsonl holds every completion"),
    "num_completions_to_print": ignored("rollouts/step-N.jsonl holds every completion"),
    "log_unique_prompts": ignored("rollouts/step-N.jsonl holds every completion"),
    "log_multimodal": ignored("there is text alone"),
    "log_completions_hub_repo": unsupported(HUB),
}
UNUSED: dict[str, tuple[str, ...]] = {
    HUB: ("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
    OWN_LOG: (
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "logging_dir",
        "log_on_each_node",
        "log_level",
        "log_level_replica",
        "logging_nan_inf_filter",
        "include_num_input_tokens_seen",
        "disable_tqdm",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "include_tokens_per_second",
    ),
    LOCAL: (
        "local_rank",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_backend",
        "ddp_timeout",
        "ddp_static_graph",
        "accelerator_config",
        "parallelism_config",
        "use_cpu",
        "debug",
        "ignore_bias_buffers",
    ),
    "checkpointed layers are never entered again by autograd (use_reentrant is false)": (
        "gradient_checkpointing_use_reentrant",
        "gradient_checkpointing_kwargs",
    ),
    "speed and memory are the learner's own matter": (
        "tf32",
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
        "use_liger_kernel",
        "eval_delay",
        "liger_kernel_config",
        "torch_empty_cache_steps",
        "bf16_full_eval",
        "fp16_full_eval",
        "skip_memory_metrics",
    ),
    "prompts are read once and kept": (
        "dataloader_drop_last",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "dataloader_in_order",
        "ignore_data_skip",
        "group_by_length",
        "length_column_name",
        "train_sampling_strategy",
        "dataset_num_proc",
    ),
    "the Trainer's own loop has no part here": (
        "per_device_eval_batch_size",
        "prediction_loss_only",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "eval_accumulation_steps",
        "include_for_metrics",
        "batch_eval_metrics",
        "save_on_each_node",
        "label_names",
        "save_safetensors",
        "enable_jit_checkpoint",
        "metric_for_best_model",
        "greater_is_better",
        "optim_target_modules",
        "restore_callback_states_from_checkpoint",
        "average_tokens_across_devices",
    ),
}
OPTIONS: dict[str, Option] = {
    **BATCH, **OPTIMIZATION, **LOSS, **GENERATION, **MODEL, **DATA, **RUN,
    **{name: ignored(reason) for reason, names in UNUSED.items() for name in names},
}  # fmt: skip
ALIASES = {
    "torch_dtype": "dtype",
    "use_liger_loss": "use_liger_kernel",
    "vllm_guided_decoding_regex": "vllm_structured_outputs_regex",
    "wandb_log_unique_prompts": "log_unique_prompts",
    "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
    "use_transformers_paged": "use_transformers_continuous_batching",
    "evaluation_strategy": "eval_strategy",
    "vllm_max_model_len": "vllm_max_model_length",
    "lr_scheduler": "lr_scheduler_type",
}
THINKING = r"(?s)^<think>(?!.*<think>)(.*?)</think>.*$"
REWARDS: dict[str, dict[str, Any] | None] = {
    "accuracy_reward": {"name": "accuracy"},
    "think_format_reward": {"name": "regex", "pattern": THINKING},
    "get_soft_overlong_punishment": {
        "name": "soft_overlong_punishment", "max_response_tokens": 1280, "buffer_tokens": 256
    },
    "reasoning_accuracy_reward": None,
}  # fmt: skip


def rewards(recipe: Recipe) -> None:
    """The names that `trl grpo` knows, and dotted paths."""
    trl_parts.rewards(recipe, REWARDS)


def betas(recipe: Recipe) -> None:
    """Adam's two in one."""
    recipe.write("learner.betas", [float(recipe.value("adam_beta1")), float(recipe.value("adam_beta2"))])


def lengths(recipe: Recipe) -> None:
    """Prompts longer than `max_prompt_length` lose their beginning there."""
    if recipe.value("max_prompt_length") is not None:
        recipe.write("data.max_prompt_tokens", int(recipe.value("max_prompt_length")))
        recipe.write("data.overlong", "filter")
        recipe.note("max_prompt_length", "longer prompts are cut from the left there, left out here (data.overlong)")
    trl_parts.room(recipe)


def engine(recipe: Recipe) -> None:
    """The default share of a GPU counts only where TRL starts the engine itself, beside the trainer."""
    share, is_beside = recipe.value("vllm_gpu_memory_utilization"), recipe.value("vllm_mode") == "colocate"
    recipe.mark_ignored("vllm_mode", OWN_ENGINES)
    if recipe.given("vllm_gpu_memory_utilization") or (recipe.value("use_vllm") and is_beside):
        recipe.write("rollout.gpu_memory_utilization", float(share))
    recipe.write("rollout.tensor_parallel_size", int(recipe.value("vllm_tensor_parallel_size")))


RULES = (
    trl_batch.batch, trl_batch.steps, trl_batch.schedule, betas, trl_batch.saves,
    trl_loss.advantages, trl_loss.aggregation, trl_loss.policy_loss, trl_loss.kl, trl_loss.corrections,
    trl_loss.entropy, trl_parts.precision, trl_parts.lora, trl_parts.data, trl_parts.evaluation, trl_parts.trackers,
    lengths, engine,
)  # fmt: skip
DIALECT = Dialect(
    name="trl", options=OPTIONS, rules=(*RULES, rewards), versions=VERSIONS, default_version="1.16", versions_of="trl",
    unique_options=("per_device_train_batch_size", "num_generations", "use_vllm", "max_completion_length"),
    aliases=ALIASES,
)  # fmt: skip
