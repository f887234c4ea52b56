"""TRL's GRPO: `GRPOConfig`, `ModelConfig`, `ScriptArguments` and the script's own options.

Names and defaults as in every release from 0.18.0 to 1.16.0 (trl/trainer/grpo_config.py, trl/trainer/model_config.py,
trl/scripts/), the inherited ones as in transformers' TrainingArguments.
"""

from __future__ import annotations

from typing import Any

from rlsys.commands.importers.dialects import shared
from rlsys.commands.importers.dialects import trl_rules as rules
from rlsys.commands.importers.dialects.reasons import OWN_LOG, SAMPLING, TEXT_ONLY
from rlsys.commands.importers.dialects.trl_training import (
    BATCH,
    LOSS,
    NO_FLOAT16,
    OPTIMIZATION,
    absent_before,
)
from rlsys.commands.importers.options import (
    ByVersion,
    Dialect,
    TableRow,
    UnsupportedError,
    by_rule,
    computed,
    converted,
    ignored,
    mapped,
    needs,
    only_if,
    plain,
    same,
    several,
    unless,
    unsupported,
    without,
)
from rlsys.commands.importers.recipe import ABSENT, NONE_STATED, Recipe

VERSIONS = (*(f"0.{minor}" for minor in range(18, 30)), *(f"1.{minor}" for minor in range(17)))
HUB = "rlsys uploads nothing; checkpoints/step-N/policy is a Hugging Face folder that you can upload"
OWN_ENGINES = "rlsys starts its own engines"
ENGINE_ALONE = "rlsys always generates with vLLM"
LOCAL = "Ray starts the processes"


GENERATION = {
    "max_prompt_length": several(
        ByVersion({"0.18": 512, "0.26": None, "0.28": ABSENT}),
        {"data.max_prompt_tokens": plain(int), "data.overlong": plain(lambda _: "filter")},
        keys=("data.max_prompt_tokens",),
        note="TRL cuts longer prompts from the left, rlsys leaves them out (data.overlong)",
    ),
    "max_completion_length": same("rollout.max_response_tokens", ByVersion({"0.18": 256, "1.10": 512})),
    "temperature": converted("rollout.temperature", 1.0, shared.temperature),
    "top_p": unsupported(SAMPLING, 1.0, (None, 1, 1.0)),
    "top_k": unsupported(SAMPLING, ByVersion({"0.18": None, "0.27": 0}), (None, 0, -1)),
    "min_p": unsupported(SAMPLING, None, (None, 0, 0.0)),
    "repetition_penalty": unsupported(SAMPLING, 1.0, (None, 1, 1.0)),
    "generation_kwargs": unsupported(SAMPLING, None, (None, {})),
    "chat_template_kwargs": converted("data.chat_template_options", absent_before("0.25", None), dict),
    "use_vllm": by_rule(default=False, also=("algorithm.corrections",)),
    "vllm_mode": ignored(OWN_ENGINES, ByVersion({"0.18": "server", "1.0": "colocate"})),
    "vllm_gpu_memory_utilization": computed("rollout.gpu_memory_utilization", 0.3, rules.memory_share),
    "vllm_tensor_parallel_size": converted("rollout.tensor_parallel_size", 1, int),
    "vllm_structured_outputs_regex": unsupported(
        "rlsys does not guide decoding; the reward `regex` can ask for a format"
    ),
    "vllm_model_impl": unsupported(
        "engines run vLLM's own model implementations", absent_before("0.21", "vllm"), ("vllm", "auto")
    ),
    "max_tool_calling_iterations": unsupported("rlsys calls no tools in training", absent_before("0.27", None)),
    "pad_to_multiple_of": ignored("rlsys packs sequences without padding"),
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
    "vllm_max_model_length": ignored("an engine's context holds the longest prompt and the longest response"),
}
HAS_LORA = needs("use_peft")
IN_4_BITS = needs("load_in_4bit", "")
MODEL = {
    "model_name_or_path": same("model.path", NONE_STATED),
    "model_revision": unsupported(
        "rlsys loads the default branch; give a folder for another revision", "main", (None, "main")
    ),
    "trust_remote_code": same("model.trust_remote_code", False),
    "dtype": mapped(
        "learner.dtype",
        ByVersion({"0.18": None, "0.27": "float32"}),
        {"float16": NO_FLOAT16, "fp16": NO_FLOAT16},
        keys=(),
        also=("learner.dtype",),
        when=without("fp16", ""),
        notes={"auto": "auto is the dtype in which the model was saved; it is read as bfloat16"},
    ),
    "model_init_kwargs": unsupported(
        "rlsys loads a model with its own config; give a folder with another config", None, (None, {})
    ),
    "attn_implementation": ignored("learner.packing chooses the attention kernel"),
    "use_peft": by_rule("learner.lora.rank", default=False),
    "lora_r": same("learner.lora.rank", 16, when=HAS_LORA),
    "lora_alpha": same("learner.lora.alpha", 32, when=HAS_LORA),
    "lora_dropout": same("learner.lora.dropout", 0.05, when=HAS_LORA),
    "lora_target_modules": converted(
        "learner.lora.target_modules",
        None,
        rules.target_modules,
        when=HAS_LORA,
        reads_none=True,
        notes={None: "unset: peft chooses by architecture; this is its choice for Qwen and Llama"},
    ),
    "lora_target_parameters": unsupported(
        "rlsys adapts whole modules: learner.lora.target_modules",
        absent_before("0.21", None),
        (None, []),
        when=HAS_LORA,
    ),
    "lora_modules_to_save": same("learner.lora.modules_to_save", None, when=HAS_LORA),
    "lora_task_type": unsupported(
        "rlsys trains causal language models only", "CAUSAL_LM", ("CAUSAL_LM",), when=HAS_LORA
    ),
    "use_rslora": same("learner.lora.use_rslora", False, when=HAS_LORA),
    "use_dora": same("learner.lora.use_dora", False, when=HAS_LORA),
    "load_in_8bit": unsupported(
        "rlsys holds frozen weights in 4 bits (nf4) or unquantized",
        False,
        keys=("learner.lora.quantize_base",),
        when=(HAS_LORA, without("load_in_4bit", "")),
    ),
    "load_in_4bit": by_rule("learner.lora.quantize_base", default=False, when=HAS_LORA),
    "bnb_4bit_quant_type": mapped(
        "learner.lora.quantize_base",
        "nf4",
        {"nf4": "nf4"},
        UnsupportedError("engines hold frozen weights as nf4, not as {value}"),
        when=(HAS_LORA, IN_4_BITS),
    ),
    "use_bnb_nested_quant": by_rule(
        default=False,
        when=(HAS_LORA, IN_4_BITS),
        notes={False: "rlsys always quantizes the quantization constants too, as the engines do"},
    ),
    "bnb_4bit_quant_storage": ignored("bitsandbytes chooses how quantized weights are stored"),
}
ONE_DATASET = without("datasets", "datasets names the data")
DATA = {
    "dataset_name": several(
        None,
        {"data.train": rules.training_data, "data.eval": rules.held_out_data},
        when=ONE_DATASET,
        reads_none=True,
    ),
    "dataset_config": by_rule(default=None, also=("data.train", "data.eval"), when=ONE_DATASET),
    "dataset_train_split": by_rule(default="train", also=("data.train",), when=ONE_DATASET),
    "dataset_test_split": by_rule(
        default="test",
        also=("data.eval",),
        when=(ONE_DATASET, unless("eval_strategy", "no", reason="eval_strategy is 'no'")),
    ),
    "datasets": several(
        NONE_STATED, {"data.train": rules.MIXTURE.sources, "data.eval": plain(lambda _: None)}, keys=("data.train",)
    ),
    "dataset_streaming": unsupported("rlsys loads all of the data", absent_before("0.19", False)),
    "streaming": unsupported("rlsys loads all of the data", False),
    "test_split_size": unsupported("rlsys does not split off held-out rows: set data.eval"),
    "shuffle_dataset": same("data.shuffle", True),
    "data_seed": unsupported("rlsys draws the prompts with `seed`"),
    "reward_funcs": by_rule("rewards", default=None),
    "reward_weights": by_rule("rewards", default=None),
    "reward_model_name_or_path": by_rule("rewards", default=None),
}
EVALUATED = unless("eval_strategy", "no", reason="there is no evaluation during training")
RUN = {
    "eval_strategy": computed("eval.every", "no", rules.eval_strategy, also=("data.eval",)),
    "eval_steps": computed(
        "eval.every",
        None,
        # TRL takes its logging interval where none is set.
        lambda recipe, updates: shared.whole_steps(recipe, updates or recipe.value("logging_steps") or 10),
        when=(EVALUATED, unless("eval_strategy", "epoch")),
        reads_none=True,
    ),
    "eval_on_start": ignored("a run that evaluates also evaluates before training"),
    "num_generations_eval": converted("eval.num_samples", absent_before("0.26", None), int, when=EVALUATED),
    "save_strategy": computed("checkpoint.every", "steps", rules.save_strategy),
    "save_steps": computed(
        "checkpoint.every",
        500,
        shared.whole_steps,
        when=(only_if("save_strategy", "steps", reason="save_strategy is '{0}'"),),
    ),
    "save_total_limit": converted("checkpoint.keep", None, shared.kept_checkpoints, reads_none=True),
    "save_only_model": unsupported("a checkpoint always holds everything that a run needs to continue", False),
    "load_best_model_at_end": unsupported("checkpoint.keep_best=eval/... keeps the best checkpoint", False),
    "report_to": computed("logging.trackers", ByVersion({"0.18": "all", "1.0": "none"}), rules.trackers),
    "push_to_hub": unsupported(HUB, False),
    "resume_from_checkpoint": ignored("resume=auto with run_dir=... continues a run"),
    "output_dir": ignored("a run goes to runs/NAME/TIME; run_dir=... chooses a folder"),
    "overwrite_output_dir": ignored("rlsys never overwrites a folder that holds a run"),
    "run_name": ignored("rlsys names a run by its folder"),
    "full_determinism": unsupported(
        "rlsys does not fix its kernels; rollout.seeded=true makes sampling repeatable", False
    ),
    "auto_find_batch_size": unsupported("a microbatch holds learner.microbatch_tokens tokens", False),
    "fsdp": ignored("DeepSpeed shards the learner: learner.zero_stage=3"),
    "fsdp_config": ignored("DeepSpeed shards the learner: learner.zero_stage=3"),
    "remove_unused_columns": ignored("rewards get every column"),
    "do_train": ignored("use the commands rlsys train and rlsys eval"),
    "do_eval": ignored("eval_strategy decides this; use the command rlsys eval after training"),
    "do_predict": ignored("use the command rlsys eval"),
    "log_completions": ignored("rollouts/step-N.jsonl holds every completion"),
    "num_completions_to_print": ignored("rollouts/step-N.jsonl holds every completion"),
    "log_unique_prompts": ignored("rollouts/step-N.jsonl holds every completion"),
    "log_multimodal": ignored(TEXT_ONLY),
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
    "rlsys always checkpoints with use_reentrant=false": (
        "gradient_checkpointing_use_reentrant",
        "gradient_checkpointing_kwargs",
    ),
    "the learner manages its speed and memory itself": (
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
    "rlsys reads the prompts once and keeps them": (
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
    "it belongs to the Trainer's loop, and rlsys has a loop of its own": (
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
OPTIONS: dict[str, TableRow] = {
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
    """Write the names that `trl grpo` knows, and dotted paths."""
    rules.rewards(recipe, REWARDS)


# What TRL's trainers on given answers do not have.
BY_REWARDS = (
    *("num_generations", "use_vllm", "max_completion_length", "num_iterations", "reward_funcs", "reward_weights"),
    *("scale_rewards", "epsilon", "epsilon_high", "steps_per_generation", "generation_batch_size", "temperature"),
    *("importance_sampling_level", "mask_truncated_completions"),
)
ALWAYS: dict[str, Any] = {
    "algorithm.advantage.name": "grpo",
    "algorithm.corrections": None,  # TRL corrects only where vLLM samples
    "learner.warmup_steps": 0,
}

DIALECT = Dialect(
    name="trl",
    options=OPTIONS,
    prepare=(rules.settle,),
    rules=(shared.fit_microbatch, rewards),
    versions=VERSIONS,
    default_version="1.16",
    versions_of="trl",
    unique_options=BY_REWARDS,
    aliases=ALIASES,
    always=ALWAYS,
    null_is_value=True,
    by_argparse=True,
)
