"""axolotl's `rl: grpo`: TRL's options under `trl:`, under names of its own beside it (axolotl/utils/schemas/).

Its trainer is TRL's, so options and rules are TRL's too; what axolotl sets by itself replaces TRL's defaults. Release
0.19 of axolotl is built on TRL 1.9.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import Any

from rlsys.commands.importers.dialects import shared, trl
from rlsys.commands.importers.dialects import trl_rules as rules
from rlsys.commands.importers.dialects.reasons import KERNELS
from rlsys.commands.importers.dialects.trl_training import LOSS
from rlsys.commands.importers.options import (
    Condition,
    Dialect,
    TableRow,
    UnsupportedError,
    by_rule,
    computed,
    converted,
    ignored,
    needs,
    only_if,
    same,
    unsupported,
    without,
)
from rlsys.commands.importers.recipe import ABSENT, NONE_STATED, Recipe
from rlsys.data.files import READERS
from rlsys.errors import ConfigError

PREPARED = "rlsys reads and tokenises the data at the start of the run"
SUPERVISED = "the option is for supervised training"

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
    *LOSS,
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

TRAINING, HELD_OUT = (
    shared.Entries(option, options=("data_files", "revision"), also=("type",))
    for option in ("datasets", "test_datasets")
)


def settle(recipe: Recipe) -> None:
    """Settle the values of TRL's options that axolotl derives from its own."""
    if recipe.is_given("world_size") and not recipe.is_given("num_processes"):
        recipe.settled["num_processes"] = int(recipe.value("world_size"))
    if recipe.is_given("warmup_steps"):  # 0 too, which TRL takes for unset
        recipe.settled["warmup_ratio"] = 0.0
    recipe.settled["use_peft"] = recipe.value("adapter") in ("lora", "qlora")
    if recipe.value("lora_target_linear"):
        recipe.settled["lora_target_modules"] = "all-linear"
    if recipe.is_given("save_steps"):
        recipe.settled["save_strategy"] = "steps"
    if not recipe.value("test_datasets"):
        recipe.settled["eval_strategy"] = "no"
    elif recipe.is_given("eval_steps"):
        recipe.settled["eval_strategy"] = "steps"
    trackers = [name for name in shared.TRACKERS if recipe.value(f"use_{name}")]
    # Naming a project of W&B turns it on.
    if "wandb" not in trackers and recipe.value("use_wandb") is None and recipe.is_given("wandb_project"):
        trackers.append("wandb")
    recipe.settled["report_to"] = trackers


def advantage(recipe: Recipe, method: Any) -> Any:
    """Return the estimator of `rl: gdpo`; that of `rl: grpo` is TRL's."""
    if method not in ("grpo", "gdpo"):
        raise ConfigError(f"rl={method}: rlsys trains by rewards; of axolotl's methods it has grpo and gdpo")
    return "gdpo" if method == "gdpo" else ABSENT


def training_data(recipe: Recipe, parts: Any) -> Any:
    """Return the sources of `datasets`, whose rows go through a Python function there (`type: module.transform`)."""
    if not parts:
        raise UnsupportedError("no dataset is named, so none is written: set data.train and data.eval")
    sources = [_source(node, "train") for node in TRAINING.sources(recipe, parts)]
    kinds = sorted({str(part["type"]) for part in parts if part.get("type")})
    if kinds:
        recipe.note(
            "datasets",
            f"the transformation {', '.join(kinds)} is not carried over: name the columns with data.prompt_column and "
            "data.columns, or use rows that are already transformed",
        )
    return sources[0] if len(sources) == 1 else sources


def held_out_data(recipe: Recipe, parts: Any) -> Any:
    """Return the sources of `test_datasets`."""
    return [_source(node, "test") for node in HELD_OUT.sources(recipe, parts or ())] or None


def _source(node: dict[str, Any], default_split: str) -> Any:
    """Return a source in its shortest form; without a split axolotl reads `train`, of held-out data too."""
    split = node.get("split", "train")
    if split == "train" and PurePath(node["name"]).suffix.lower() in READERS:
        split = default_split  # a file has the split `train` alone, and takes no other in rlsys
    return shared.source(node["name"], node.get("subset"), split, default_split, **node.get("options", {}))


def per_epoch(recipe: Recipe, times: Any) -> int:
    """Return the steps between two of that many saves or evaluations in an epoch."""
    return max(round(shared.steps_per_epoch(recipe) / float(times)), 1)


def warmup(recipe: Recipe, share: Any) -> int:
    """Return the updates of warm-up: a share rounded down, at most 100 where the recipe gives none, and never 1."""
    updates = shared.share_of_updates(recipe, share, int)
    updates = updates if recipe.is_given("warmup_ratio") else min(updates, 100)
    return 2 if updates == 1 else updates


def staleness(recipe: Recipe, is_async: Any) -> Any:
    """Return how old the policy of prefetched rollouts may be."""
    return int(recipe.value("trl.prefetch_depth") or 1) if is_async else ABSENT


def rewards(recipe: Recipe) -> None:
    """Write the rewards: dotted paths, importable from the folder of the run."""
    rules.rewards(recipe, {})


# Defaults that axolotl sets in place of TRL's.
DEFAULTS: dict[str, Any] = {
    "lora_r": None,
    "lora_alpha": None,
    "lora_dropout": 0.0,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 1,
    "num_train_epochs": 1.0,
    "learning_rate": NONE_STATED,
    "vllm_gpu_memory_utilization": 0.9,
    "ref_model_mixup_alpha": 0.9,
    "ref_model_sync_steps": 64,
    "scale_rewards": True,
    "save_total_limit": 4,
    "report_to": [],
}
SAVED_BY_STRATEGY = without("saves_per_epoch", "saves_per_epoch replaces it")
EVALUATED_BY_STRATEGY = Condition(("evals_per_epoch", "test_datasets"), lambda count, data: not (count and data))
CONDITIONS: dict[str, Condition] = {
    "save_strategy": SAVED_BY_STRATEGY,
    "save_steps": SAVED_BY_STRATEGY,
    "eval_strategy": EVALUATED_BY_STRATEGY,
    "eval_steps": EVALUATED_BY_STRATEGY,
    "num_generations_eval": EVALUATED_BY_STRATEGY,
}
OWN: dict[str, TableRow] = {
    "rl": computed("algorithm.advantage.name", None, advantage, keys=(), also=("algorithm.advantage.name",)),
    "datasets": computed("data.train", NONE_STATED, training_data, reads_none=True),
    "test_datasets": computed("data.eval", NONE_STATED, held_out_data, reads_none=True, when=(needs("datasets", ""),)),
    **dict.fromkeys(
        ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"),
        ignored("datasets and test_datasets name the data"),
    ),
    "sequence_len": ignored("trl.max_completion_length bounds completions"),
    "adapter": by_rule(
        "learner.lora.rank",
        default=None,
        when=(only_if("adapter", None, "lora", "qlora", reason="rlsys has no adapter '{0}'", is_loss=True),),
    ),
    "lora_target_linear": by_rule("learner.lora.target_modules", default=None, when=trl.HAS_LORA),
    "lora_model_dir": unsupported("it is not carried over: set model.adapter to start from these adapters"),
    "vllm.enforce_eager": same("rollout.enforce_eager", NONE_STATED),
    "bf16": replace(
        trl.OPTIONS["bf16"],
        default="auto",
        words=("auto", "full"),
        notes={name: f"'{name}' is read as bfloat16" for name in ("auto", "full")},
    ),
    "warmup_ratio": replace(trl.OPTIONS["warmup_ratio"], default=0.03, writes={"learner.warmup_steps": warmup}),
    "save_strategy": replace(trl.OPTIONS["save_strategy"], default="epoch"),
    "gradient_checkpointing": converted(
        "learner.gradient_checkpointing", False, bool, words=("unsloth", "offload", "offload_disk")
    ),
    "saves_per_epoch": computed("checkpoint.every", None, per_epoch),
    "evals_per_epoch": computed(
        "eval.every", None, per_epoch, when=(needs("test_datasets", "no held-out data is named"),)
    ),
    **{
        f"use_{name}": by_rule(default=None, also=("logging.trackers",))
        for name in ("wandb", "mlflow", "tensorboard", "trackio")
    },
    "use_comet": unsupported("rlsys has no tracker for Comet"),
    "wandb_project": by_rule(default=None, also=("logging.trackers",)),
    "wandb_entity": by_rule(default=None, also=("logging.trackers",)),
    **dict.fromkeys(("wandb_name", "mlflow_run_name", "trackio_run_name"), ignored("rlsys names a run by its folder")),
    **dict.fromkeys(
        ("wandb_run_id", "wandb_watch", "wandb_log_model", "wandb_mode"),
        ignored("set W&B's environment variables instead"),
    ),
    "test_split_size": unsupported("rlsys does not split off held-out rows: set data.eval", 0.0, (None, 0, 0.0)),
    "chat_template_jinja": same("model.chat_template", NONE_STATED),
    "chat_template": ignored("rlsys uses the tokenizer's own template; chat_template_jinja replaces it"),
    "default_system_message": same("data.system_prompt", NONE_STATED),
    "shuffle_merged_datasets": same("data.shuffle", True),
    "early_stopping_patience": unsupported("train.stop ends a run early, by an eval/ metric of rlsys's own"),
    "torch_compile": ignored(KERNELS),
    "context_parallel_size": unsupported("rlsys keeps a sequence on one device", None, (None, 0, 1)),
    "tensor_parallel_size": unsupported("learner.zero_stage shards the learner instead", None, (None, 0, 1)),
    "world_size": by_rule(default=NONE_STATED, also=("train.prompts_per_step",)),
}
UNDER_TRL_ALONE = {
    "rollout_func": unsupported("rlsys samples rollouts in its own way"),
    "replay_buffer_size": unsupported("rlsys does not replay groups", 0, (None, 0)),
    "reroll_start_fraction": unsupported("rlsys does not sample a prompt again later", 1.0, (None, 1, 1.0)),
    "async_prefetch": computed("train.max_staleness", False, staleness),
    "prefetch_depth": by_rule("train.max_staleness", default=None),
    "vllm_sync_interval": unsupported("rlsys broadcasts the weights after every step", None, (None, 1)),
    **{
        name: ignored("rlsys scores every response as it finishes")
        for name in ("streaming_partial_batch", "streaming_min_groups")
    },
    "use_data_producer": ignored("rlsys samples rollouts in its own way"),
    "reward_num_workers": same("scoring.num_workers", 1),
    **dict.fromkeys(
        ("replay_recompute_logps", "reroll_max_groups", "vllm_lora_sync"),
        ignored("it belongs to a feature that rlsys does not have"),
    ),
    "skip_zero_advantage_batches": ignored("a group of equal rewards costs a forward pass and gives no gradient"),
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
    "an engine's context holds the longest prompt and the longest response": ("vllm.max_model_len",),
    "the model's folder says how to load the model and its tokenizer": (
        "tokenizer_type", "model_type", "type_of_model", "tokenizer_use_fast", "is_qwen_derived_model", "plugins",
        "is_llama_derived_model", "special_tokens", "tokenizer_config", "base_model_config",
        "auto_resume_from_checkpoints"),
}  # fmt: skip
OPTIONS = {
    **trl.OPTIONS,
    **{name: replace(trl.OPTIONS[name], default=default) for name, default in DEFAULTS.items()},
    **OWN,
    **{f"trl.{name}": row for name, row in UNDER_TRL_ALONE.items()},
    **{name: ignored(reason) for reason, names in UNUSED.items() for name in names},
}
OPTIONS |= {
    name: replace(OPTIONS[name], when=(condition, *OPTIONS[name].conditions)) for name, condition in CONDITIONS.items()
}
DIALECT = Dialect(
    name="axolotl",
    options=OPTIONS,
    prepare=(settle,),
    rules=(shared.fit_microbatch, rewards),
    versions=trl.VERSIONS,
    default_version="1.9",
    versions_of="trl",
    unique_options=("base_model", "rl", "trl", "micro_batch_size", "sequence_len", "num_epochs", "val_set_size"),
    aliases=ALIASES | SPELT_AGAIN,
    renames=True,
    always=trl.ALWAYS | {"data.chat_template": True},
    requires={"rl": "axolotl does supervised fine-tuning; only recipes of training by rewards are read (`rl: grpo`)"},
)
