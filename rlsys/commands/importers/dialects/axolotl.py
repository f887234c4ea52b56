"""axolotl's `rl: grpo`: TRL's options under `trl:`, under names of its own beside it (axolotl/utils/schemas/).

Its trainer is TRL's, so options and rules are TRL's too; what axolotl sets by itself replaces TRL's defaults. Release
0.18 of axolotl is built on TRL 1.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from rlsys.commands.importers.dialects import trl, trl_batch, trl_parts
from rlsys.commands.importers.options import NONE_STATED, Dialect, Option, by_rule, ignored, same, unsupported
from rlsys.commands.importers.recipe import Recipe
from rlsys.data.files import READERS
from rlsys.errors import ConfigError

PREPARED = "data is read and tokenised at the start of the run"
KERNELS = "how layers are computed is the learner's own matter (learner.packing)"
SUPERVISED = "it is about supervised training"

ALIASES = {
    "base_model": "model_name_or_path",
    "revision_of_model": "model_revision",
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "rl_beta": "beta",
    "eval_batch_size": "per_device_eval_batch_size",
    "val_set_size": "test_split_size",
    "peft_use_rslora": "use_rslora",
    "peft_use_dora": "use_dora",
    "vllm.tensor_parallel_size": "vllm_tensor_parallel_size",
    "vllm.gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "vllm.dtype": "vllm_dtype",
    "vllm.device": "vllm_device",
    "vllm.enable_prefix_caching": "vllm_enable_prefix_caching",
    "eval_strategy": "eval_strategy",
    "evaluation_strategy": "eval_strategy",
    "dataset_num_proc": "dataset_num_proc",
    "dataset_processes": "dataset_num_proc",
}
UNDER_TRL = (
    *trl.LOSS,
    *(name for name in trl.GENERATION if name not in ("vllm_device", "vllm_dtype", "vllm_enable_prefix_caching")),
    *("generation_batch_size", "num_generations", "num_iterations", "reward_funcs", "reward_weights"),
    *("log_completions", "num_completions_to_print", "log_multimodal"),
)
ALIASES |= {f"trl.{name}": name for name in UNDER_TRL}
SPELT_AGAIN = {
    "trl.use_liger_loss": "use_liger_kernel",
    "trl.vllm_guided_decoding_regex": "vllm_structured_outputs_regex",
    "trl.vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
    "trl.vllm_max_model_len": "vllm_max_model_length",
}

OWN: dict[str, Option] = {
    "rl": by_rule(default=None, also=("algorithm.advantage.name",)),
    "datasets": by_rule("data.train", default=NONE_STATED),
    "test_datasets": by_rule("data.eval", default=NONE_STATED),
    "sequence_len": ignored("completions are bounded by trl.max_completion_length"),
    "adapter": by_rule("learner.lora.rank", default=None),
    "lora_r": by_rule("learner.lora.rank", default=None),
    "lora_alpha": by_rule("learner.lora.alpha", default=None),
    "lora_dropout": by_rule("learner.lora.dropout", default=0.0),
    "lora_target_linear": by_rule("learner.lora.target_modules", default=None),
    "lora_model_dir": unsupported("training starts from a model, not from adapters: merge them into it first"),
    "vllm.enforce_eager": same("rollout.enforce_eager", NONE_STATED),
    "lr_scheduler_type": by_rule("learner.lr_schedule", default="cosine"),
    "per_device_train_batch_size": by_rule("train.prompts_per_step", default=1),
    "num_train_epochs": by_rule("train.num_steps", default=1.0),
    "learning_rate": same("learner.lr", NONE_STATED),
    "warmup_ratio": by_rule("learner.warmup_steps", default=0.03),
    "gradient_checkpointing": same("learner.gradient_checkpointing", False),
    "bf16": by_rule("learner.dtype", default="auto"),
    "vllm_gpu_memory_utilization": by_rule("rollout.gpu_memory_utilization", default=0.9),
    "ref_model_mixup_alpha": by_rule("algorithm.refresh.alpha", default=0.9),
    "ref_model_sync_steps": by_rule("algorithm.refresh.every", default=64),
    "scale_rewards": by_rule("algorithm.advantage.scale", default=True),
    "save_strategy": by_rule("checkpoint.every", default="epoch"),
    "save_total_limit": by_rule("checkpoint.keep", default=4),
    "saves_per_epoch": by_rule("checkpoint.every", default=None),
    "evals_per_epoch": by_rule("eval.every", default=None),
    "report_to": by_rule("logging.trackers", default=[]),
    **{
        f"use_{name}": by_rule(default=None, also=("logging.trackers",))
        for name in ("wandb", "mlflow", "tensorboard", "trackio")
    },
    "use_comet": unsupported("there is no tracker for Comet"),
    "wandb_project": by_rule(default=None, also=("logging.trackers",)),
    "wandb_entity": by_rule(default=None, also=("logging.trackers",)),
    **dict.fromkeys(("wandb_name", "mlflow_run_name", "trackio_run_name"), ignored("a run is named by its folder")),
    **dict.fromkeys(("wandb_run_id", "wandb_watch", "wandb_log_model", "wandb_mode"), ignored("W&B's own environment")),
    "test_split_size": unsupported("held-out rows are not split off; set data.eval", 0.0, (None, 0, 0.0)),
    "chat_template_jinja": same("model.chat_template", NONE_STATED),
    "chat_template": ignored("the tokenizer's own template is used; chat_template_jinja replaces it"),
    "default_system_message": same("data.system_prompt", NONE_STATED),
    "shuffle_merged_datasets": same("data.shuffle", True),
    "early_stopping_patience": unsupported("a run takes its number of steps"),
    "torch_compile": ignored(KERNELS),
    "context_parallel_size": unsupported("a sequence stays on one device", None, (None, 0, 1)),
    "tensor_parallel_size": unsupported("the learner is sharded by learner.zero_stage", None, (None, 0, 1)),
    "world_size": by_rule(default=NONE_STATED, also=("train.prompts_per_step",)),
}
REFUSED_UNDER_TRL = {
    "rollout_func": unsupported("rollouts are rlsys's own"),
    "replay_buffer_size": unsupported("groups are not replayed", 0, (None, 0)),
    "reroll_start_fraction": unsupported("prompts are not rolled again later", 1.0, (None, 1, 1.0)),
    "async_prefetch": by_rule("train.max_staleness", default=False),
    "prefetch_depth": by_rule("train.max_staleness", default=None),
    "vllm_sync_interval": unsupported("weights are broadcast after every step", None, (None, 1)),
    **{
        name: ignored("groups are scored as they finish")
        for name in ("streaming_partial_batch", "streaming_min_groups")
    },
    "use_data_producer": ignored("rollouts are rlsys's own"),
    "reward_num_workers": same("scoring.num_workers", 1),
    **dict.fromkeys(("replay_recompute_logps", "reroll_max_groups", "vllm_lora_sync"), ignored("it is off here")),
    "skip_zero_advantage_batches": ignored("a group of equal rewards costs a forward, and has no gradient"),
}
UNUSED = {
    PREPARED: ("dataset_prepared_path", "skip_prepare_dataset", "dataset_keep_in_memory", "dataset_shard_num",
               "dataset_shard_idx", "streaming", "push_dataset_to_hub", "hf_use_auth_token", "strict"),
    KERNELS: ("flash_attention", "sdp_attention", "flex_attention", "xformers_attention", "eager_attention",
              "sage_attention", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "batch_flattening", "float32",
              "gc_steps", "activation_offloading", "load_in_8bit_fp32_cpu_offload", "low_cpu_mem_usage", "device_map"),
    SUPERVISED: ("train_on_inputs", "sample_packing", "eval_sample_packing", "pad_to_sequence_len", "group_by_length",
                 "sample_packing_group_size", "sample_packing_bin_size", "val_sample_packing"),
    # The server's side: `trl.vllm_server_host` and the like are the trainer's, and a recipe sets both.
    trl.OWN_ENGINES: ("vllm.host", "vllm.port", "vllm.data_parallel_size", "vllm.enable_reasoning",
                      "vllm.reasoning_parser", "vllm.serve_module", "vllm.worker_extension_cls"),
    "an engine's context is the longest prompt and response": ("vllm.max_model_len",),
    "the tokenizer and the model are loaded by what their folder says": (
        "tokenizer_type", "model_type", "type_of_model", "tokenizer_use_fast", "is_qwen_derived_model", "plugins",
        "is_llama_derived_model", "special_tokens", "tokenizer_config", "base_model_config",
        "auto_resume_from_checkpoints"),
}  # fmt: skip
OPTIONS = {
    **trl.OPTIONS,
    **OWN,
    **{f"trl.{name}": option for name, option in REFUSED_UNDER_TRL.items()},
    **{name: ignored(reason) for reason, names in UNUSED.items() for name in names},
}


def algorithm(recipe: Recipe) -> None:
    """`rl: grpo` or `rl: gdpo`."""
    kind = recipe.value("rl")
    if kind not in (None, "grpo", "gdpo"):
        raise ConfigError(f"rl={kind}: rlsys trains by rewards, so of axolotl's methods there are grpo and gdpo")
    if kind == "gdpo":
        recipe.write("algorithm.advantage", {"name": "gdpo"})


def lora(recipe: Recipe) -> None:
    """`adapter: lora` or `qlora` is what TRL calls use_peft."""
    kind = recipe.value("adapter")
    recipe.settle("use_peft", kind in ("lora", "qlora"))
    if kind not in (None, "lora", "qlora"):
        recipe.mark_unsupported("adapter", f"there is no adapter '{kind}' here")
    if recipe.value("lora_target_linear"):
        recipe.settle("lora_target_modules", "all-linear")
    trl_parts.lora(recipe)


def precision(recipe: Recipe) -> None:
    """`bf16: auto` is bfloat16 wherever the device has it."""
    if recipe.value("bf16") in ("auto", "full"):
        recipe.note("bf16", f"'{recipe.value('bf16')}' is taken to be bfloat16")
        recipe.settle("bf16", True)
    trl_parts.precision(recipe)


def data(recipe: Recipe) -> None:
    """Rows go through a Python function there (`type: module.transform`), which is not carried over."""
    datasets, held_out = recipe.value("datasets"), recipe.value("test_datasets")
    recipe.write("data.chat_template", True)
    if not datasets:
        recipe.mark_unsupported("datasets", "none is named; wrote nothing: set data.train and data.eval")
        return
    sources = [_source(part, "datasets", "train") for part in datasets]
    recipe.write("data.train", sources[0] if len(sources) == 1 else sources)
    recipe.write("data.eval", [_source(part, "test_datasets", "test") for part in held_out] if held_out else None)
    for option, parts in (("datasets", datasets), ("test_datasets", held_out or [])):
        trl_parts.left_out(recipe, option, parts, (*READ, "type"))
    kinds = sorted({str(part["type"]) for part in datasets if part.get("type")})
    if kinds:
        recipe.note(
            "datasets",
            f"the transformation {', '.join(kinds)} is not carried over: name the columns with data.prompt_column and "
            "data.columns, or give rows that are transformed already",
        )


READ = ("path", "name", "split", "data_files", "revision")
"""Of an entry of `datasets`."""


def _source(part: Any, option: str, our_split: str) -> Any:
    """An entry of `option` as ours; without a split axolotl reads `train`, of held-out data too."""
    if not isinstance(part, Mapping) or not part.get("path"):
        raise ConfigError(f"{option}: each entry needs a path; this one is {part!r}")
    split = part.get("split") or "train"
    if split == "train" and PurePath(str(part["path"])).suffix.lower() in READERS:
        split = None  # a file has this one alone, and takes no other here
    node = trl_parts.source(part["path"], part.get("name"), split, our_split)
    options = {key: part[key] for key in ("data_files", "revision") if part.get(key)}
    if not options:
        return node
    return ({"name": node} if isinstance(node, str) else node) | {"options": options}


def saves(recipe: Recipe) -> None:
    """`save_steps` makes the strategy 'steps'; `saves_per_epoch` and `evals_per_epoch` divide an epoch."""
    if recipe.given("save_steps"):
        recipe.settle("save_strategy", "steps")
    epoch = trl_batch.steps_an_epoch(recipe)
    for name, key in (("saves_per_epoch", "checkpoint.every"), ("evals_per_epoch", "eval.every")):
        count = recipe.value(name)
        if count and name == "evals_per_epoch" and not recipe.value("test_datasets"):
            recipe.mark_ignored(name, "there is no held-out data")
        elif count and epoch is None:
            recipe.mark_unsupported(name, trl_batch.NEEDS_ROWS.format(key=key))
        elif count and epoch is not None:
            recipe.write(key, max(round(epoch / float(count)), 1))
    if recipe.value("saves_per_epoch"):
        recipe.mark_ignored("save_strategy", "saves_per_epoch decides")
        recipe.mark_ignored("save_steps", "saves_per_epoch decides")
        recipe.write("checkpoint.keep", int(recipe.value("save_total_limit")))
    else:
        trl_batch.saves(recipe)


def evaluation(recipe: Recipe) -> None:
    """Held-out data is evaluated; without it nothing is."""
    if recipe.value("evals_per_epoch") and recipe.value("test_datasets"):
        return
    if recipe.given("eval_steps") and recipe.value("test_datasets"):
        recipe.settle("eval_strategy", "steps")
    if not recipe.value("test_datasets"):
        recipe.settle("eval_strategy", "no")
    trl_parts.evaluation(recipe)


def trackers(recipe: Recipe) -> None:
    """`use_wandb` and the like; naming a project of W&B turns it on."""
    names = [name for name in trl_parts.TRACKERS if recipe.value(f"use_{name}")]
    if "wandb" not in names and recipe.value("use_wandb") is None and recipe.given("wandb_project"):
        names.append("wandb")
    recipe.settle("report_to", names)
    trl_parts.trackers(recipe)


def ahead(recipe: Recipe) -> None:
    """Rollouts prefetched while the trainer works are of an older policy."""
    if recipe.value("trl.async_prefetch"):
        recipe.write("train.max_staleness", int(recipe.value("trl.prefetch_depth") or 1))


def rewards(recipe: Recipe) -> None:
    """Dotted paths, importable from the folder of the run."""
    trl_parts.rewards(recipe, {})


def names(recipe: Recipe) -> None:
    """What stands under two names, or is decided otherwise than TRL does."""
    if recipe.given("world_size") and not recipe.given("num_processes"):
        recipe.settle("num_processes", int(recipe.value("world_size")))
    if recipe.given("warmup_steps"):  # 0 too, which TRL takes for unset
        recipe.settle("warmup_ratio", 0.0)


REPLACED = {
    trl_parts.lora: lora,
    trl_parts.precision: precision,
    trl_parts.data: data,
    trl_parts.evaluation: evaluation,
    trl_parts.trackers: trackers,
    trl_batch.saves: saves,
}
DIALECT = Dialect(
    name="axolotl",
    options=OPTIONS,
    rules=(names, *(REPLACED.get(rule, rule) for rule in trl.RULES), algorithm, ahead, rewards),
    versions=trl.VERSIONS,
    default_version="1.8",
    versions_of="trl",
    unique_options=("base_model", "rl", "trl", "micro_batch_size", "sequence_len", "num_epochs", "val_set_size"),
    aliases=ALIASES | SPELT_AGAIN,
    renames=True,
)
