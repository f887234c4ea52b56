"""EasyR1: `examples/config.yaml` and the overrides of its scripts (verl/trainer/config.py, verl/workers/*/config.py).

Defaults are those of the dataclasses, not of the example, as they stood in July 2026. It counts prompts, as rlsys does:
`data.rollout_batch_size` of them per step, `worker.actor.global_batch_size` of them per optimizer update,
`worker.rollout.n` responses each.
"""

from __future__ import annotations

from dataclasses import replace

from rlsys.commands.importers.dialects import easyr1_rules as rules
from rlsys.commands.importers.dialects import shared
from rlsys.commands.importers.dialects.reasons import (
    DEVICES,
    FOLDERS,
    MEMORY,
    OWN_DISPLAY,
    SAMPLING,
    SHARDING,
    TEXT_ONLY,
)
from rlsys.commands.importers.options import (
    Condition,
    Dialect,
    Noted,
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
    switched,
    unless,
    unless_set,
    unsupported,
    without,
)
from rlsys.commands.importers.recipe import ABSENT, NONE_STATED

ESTIMATOR, LOSS, OPTIM = "algorithm.adv_estimator", "worker.actor.loss_type", "worker.actor.optim."
UNREAD = "loss_type={0} does not use it"
SAPO, NOT_SAPO = only_if(LOSS, "sapo", reason=UNREAD), unless(LOSS, "sapo", reason=UNREAD)
HAS_KL = without("algorithm.disable_kl", "disable_kl is true")
HAS_GRADIENT = Condition(
    ("algorithm.kl_penalty", "algorithm.use_kl_loss"),
    lambda kind, in_loss: not in_loss or kind != "kl",
    "the estimator 'kl' in the loss has an expected gradient of 0, so algorithm.kl.coef=0 was written",
    is_loss=True,
)
ADAPTS = (HAS_KL, only_if("algorithm.kl_type", "adaptive", reason="kl_type is not adaptive"))
FILTERS = needs("algorithm.online_filtering", "online_filtering is false")
FILTERED = unless(ESTIMATOR, "gae", "remax", "reinforce_plus_plus")  # these learn from equal rewards too
HAS_CRITIC = only_if(ESTIMATOR, "gae", reason="only gae has a critic")
HAS_LORA = needs("worker.actor.model.lora.rank", "lora.rank is 0")
DATA: dict[str, TableRow] = {
    "train_files": converted("data.train", "", rules.training_data),
    "val_files": converted(
        "data.eval", "", lambda named: shared.only_or_all(shared.named_sources(named, "train", "test"))
    ),
    "prompt_key": same("data.prompt_column", "prompt"),
    "answer_key": converted("data.columns", "answer", lambda key: ABSENT if key == "answer" else {"answer": str(key)}),
    "max_prompt_length": same("data.max_prompt_tokens", 512),
    "max_response_length": same("rollout.max_response_tokens", 512),
    "rollout_batch_size": converted("train.prompts_per_step", 512, int),
    "mini_rollout_batch_size": computed(
        "algorithm.groups.oversample",
        None,
        shared.oversample,
        when=(
            needs(
                "algorithm.online_filtering",
                "without online_filtering a step samples no more prompts than it trains on",
            ),
            FILTERED,
        ),
    ),
    "val_batch_size": ignored("rlsys samples all held-out prompts together"),
    "format_prompt": same("data.prompt_template", None, note="a path is looked up in the folder where the run starts"),
    "override_chat_template": same("model.chat_template", None),
    "shuffle": same("data.shuffle", True),
    "seed": converted("seed", 1, int),
    "filter_overlong_prompts": converted("data.overlong", True, lambda value: "filter" if value else "refuse"),
    "filter_overlong_prompts_workers": ignored("rlsys tokenises the prompts at the start of the run"),
    **dict.fromkeys(
        ("image_key", "video_key", "image_dir", "video_fps", "min_pixels", "max_pixels"),
        ignored(f"{TEXT_ONLY}; it does not read columns of images and videos"),
    ),
}
ALGORITHM = {
    "gamma": converted(
        "algorithm.advantage.gamma",
        1.0,
        float,
        neutral=(1, 1.0),
        when=(
            unless(
                ESTIMATOR,
                "reinforce_plus_plus",
                reason="rlsys does not discount rewards for this estimator",
                is_loss=True,
            ),
            only_if(ESTIMATOR, "gae", reason="the estimator '{0}' does not discount"),
        ),
    ),
    "lam": converted("algorithm.advantage.lam", 1.0, float, when=only_if(ESTIMATOR, "gae", reason="only gae uses it")),
    "adv_estimator": mapped("algorithm.advantage", "grpo", rules.ESTIMATORS, rules.OTHER_ESTIMATOR),
    "disable_kl": switched("algorithm.kl.coef", False, 0.0),
    "use_kl_loss": switched("algorithm.kl.apply_to", False, "loss", "reward", when=HAS_KL),
    "kl_penalty": mapped(
        "algorithm.kl.name",
        "kl",
        rules.KL,
        UnsupportedError("rlsys has no estimator '{value}', so k3 was written", "k3"),
        when=(
            HAS_KL,
            HAS_GRADIENT,
        ),
    ),
    "kl_coef": computed("algorithm.kl.coef", 1e-3, shared.zero_unless(HAS_GRADIENT), when=HAS_KL),
    "kl_type": by_rule("algorithm.kl.target", default="fixed", when=HAS_KL),
    "kl_horizon": converted("algorithm.kl.horizon", 1e4, int, when=ADAPTS),
    "kl_target": converted("algorithm.kl.target", 0.1, float, when=ADAPTS),
    "online_filtering": switched(
        "algorithm.groups.zero_variance",
        False,
        Noted(
            "resample",
            "EasyR1 keeps a group whose mean lies within filter_low and filter_high, rlsys one whose rewards are not "
            "all equal; for rewards of 0 and 1 this is the same",
        ),
        neutral=(False,),
        when=replace(FILTERED, reason=shared.EQUAL_REWARDS, is_loss=True),
    ),
    **{
        f"filter_{name}": by_rule(default=default, also=("algorithm.groups.zero_variance",), when=FILTERS)
        for name, default in (("key", "overall"), ("low", 0.01), ("high", 0.99))
    },
}
ACTOR = {
    "strategy": unsupported(SHARDING, "fsdp", ("fsdp", "fsdp2")),
    "global_batch_size": computed("train.minibatches_per_step", 256, rules.minibatches),
    "max_grad_norm": same("learner.max_grad_norm", 1.0),
    "clip_ratio_low": converted("algorithm.policy_loss.clip_low", 0.2, float, when=(
        unless(LOSS, "cispo", reason="cispo has no lower bound in rlsys, as in the paper's runs", is_loss=True),
        NOT_SAPO)),
    "clip_ratio_high": several(0.3, {
        "algorithm.policy_loss.clip_high": plain(float),
        "algorithm.policy_loss.ratio_max": plain(lambda high: 1.0 + float(high))}, when=NOT_SAPO),
    "clip_ratio_dual": converted("algorithm.policy_loss.dual_clip", 3.0, float, when=(
        unless(LOSS, "gspo", "gspo_token", reason="{0} has no second bound in rlsys", is_loss=True),
        unless(LOSS, "cispo", "sapo", reason=UNREAD))),
    "tau_positive": converted("algorithm.policy_loss.temperature_pos", 1.0, float, when=SAPO),
    "tau_negative": converted("algorithm.policy_loss.temperature_neg", 1.05, float, when=SAPO),
    "loss_avg_mode": mapped("algorithm.aggregation", "token", rules.AGGREGATIONS, UnsupportedError(
        "rlsys has no aggregation '{value}', so token_mean was written", {"name": "token_mean"})),
    "loss_type": mapped("algorithm.policy_loss.name", "default", rules.LOSSES, UnsupportedError(
        "rlsys has no loss '{value}', so ppo_clip was written", "ppo_clip")),
    "ppo_epochs": converted("train.updates_per_step", 1, int),
    "padding_free": ignored("rlsys packs sequences without padding"),
    **dict.fromkeys(("micro_batch_size_per_device_for_update", "micro_batch_size_per_device_for_experience",
                     "dynamic_batching"), ignored(MEMORY)),
    "use_torch_compile": ignored("the learner chooses its kernels itself"),
    "ulysses_size": unsupported("rlsys keeps a sequence on one device", 1, (None, 1)),
    "ulysses_sequence_parallel_size": unsupported("rlsys keeps a sequence on one device", 1, (None, 1)),
    "model.model_path": same("model.path", NONE_STATED),
    "model.tokenizer_path": unsupported("rlsys loads the model's own tokenizer"),
    "model.override_config": unsupported("rlsys loads a model with its own config", None, (None, {})),
    "model.enable_gradient_checkpointing": same("learner.gradient_checkpointing", True),
    "model.trust_remote_code": same("model.trust_remote_code", True),
    "model.freeze_vision_tower": ignored(TEXT_ONLY),
    "model.lora.rank": same("learner.lora.rank", 0),
    "model.lora.alpha": converted("learner.lora.alpha", 64, float, when=HAS_LORA),
    "model.lora.target_modules": converted("learner.lora.target_modules", "all-linear", rules.modules, when=HAS_LORA),
    "model.lora.exclude_modules": ignored(f"{TEXT_ONLY}; the option leaves out the vision tower"),
    "optim.lr": same("learner.lr", 1e-6),
    "optim.betas": converted("learner.betas", [0.9, 0.999], lambda value: [float(beta) for beta in value]),
    "optim.weight_decay": several(1e-2, shared.decayed("learner")),
    "optim.strategy": unsupported("the optimizer state is always float32", "adamw", ("adamw",)),
    "optim.lr_warmup_ratio": computed(
        "learner.warmup_steps", 0.0, shared.warmup_share_of_steps,
        when=unless_set(f"{OPTIM}lr_warmup_steps", "lr_warmup_steps replaces it")),
    "optim.lr_warmup_steps": computed("learner.warmup_steps", None, shared.warmup_of_steps),
    "optim.min_lr_ratio": by_rule("learner.lr_schedule", default=None, neutral=(0, 0.0), when=(
        unless(f"{OPTIM}lr_scheduler_type", "cosine", reason="the cosine schedule of rlsys ends at 0", is_loss=True),
        unless_set(f"{OPTIM}min_lr_ratio", "the schedule does this already"))),
    "optim.lr_scheduler_type": mapped("learner.lr_schedule", "constant", {"constant": "constant", "cosine": "cosine"},
        UnsupportedError("EasyR1 has no schedule '{value}', so constant was written", "constant")),
    "fsdp.torch_dtype": ignored("with learner.dtype=bfloat16 the master weights are float32"),
    "fsdp.mp_param_dtype": mapped("learner.dtype", "bf16", rules.DTYPES, shared.OTHER_DTYPE),
    **{f"fsdp.{name}": ignored(SHARDING) for name in (
        "enable_full_shard", "enable_cpu_offload", "enable_rank0_init", "use_orig_params", "fsdp_size",
        "mp_reduce_dtype", "mp_buffer_dtype")},
    "offload.offload_params": ignored("parameters stay on the training devices; learner.zero_stage=3 divides them"),
    "offload.offload_optimizer": same("learner.offload_optimizer", False),
}  # fmt: skip
CRITIC = {
    **dict.fromkeys(ACTOR, ignored("the critic has its own options: critic.*")),
    **dict.fromkeys(
        ("loss_avg_mode", "ppo_epochs"),
        ignored("the critic's loss is a mean over tokens, and the critic trains once per step"),
    ),
    "cliprange_value": several(
        0.5,
        {"critic.value_clip": plain(lambda bound: bound), "critic.dtype": plain(lambda _: "bfloat16")},
        keys=("critic.value_clip",),
        when=HAS_CRITIC,
    ),
    "optim.lr": same("critic.lr", 1e-6, when=HAS_CRITIC),
    "model.enable_gradient_checkpointing": same("critic.gradient_checkpointing", True, when=HAS_CRITIC),
    "optim.weight_decay": several(1e-2, shared.decayed("critic"), when=HAS_CRITIC),
    "max_grad_norm": same("critic.max_grad_norm", 1.0, when=HAS_CRITIC),
    "offload.offload_optimizer": same("critic.offload_optimizer", False, when=HAS_CRITIC),
}
ROLLOUT = {
    "name": unsupported("rlsys samples with vLLM", "vllm", ("vllm",)),
    "n": same("train.samples_per_prompt", 1),
    "temperature": converted("rollout.temperature", 1.0, shared.temperature),
    "top_p": unsupported(SAMPLING, 1.0, (None, 1, 1.0)),
    "top_k": unsupported(SAMPLING, -1, (None, 0, -1)),
    "seed": ignored("data.seed is the run's seed; rollout.seeded=true gives every response its own random stream"),
    "limit_images": unsupported(TEXT_ONLY, 0, (None, 0)),
    "dtype": ignored("engines use the learner's dtype unless rollout.dtype is set"),
    "gpu_memory_utilization": same("rollout.gpu_memory_utilization", 0.6),
    "ignore_eos": same("rollout.ignore_eos", False),
    "enforce_eager": same("rollout.enforce_eager", False),
    "enable_chunked_prefill": ignored("vLLM's scheduler decides this"),
    "tensor_parallel_size": same("rollout.tensor_parallel_size", 2),
    "max_model_len": ignored("an engine's context holds the longest prompt and the longest response"),
    "max_num_batched_tokens": ignored(
        "vLLM's scheduler decides this; rollout.max_num_seqs bounds the requests at once"
    ),
    "val_override_config": computed(
        "eval.num_samples", NONE_STATED, rules.evaluation, keys=("eval.num_samples", "eval.temperature")
    ),
    **dict.fromkeys(("disable_log_stats", "disable_tqdm"), ignored(OWN_DISPLAY)),
}
REWARD = {
    "reward_function": by_rule("rewards", default=None),
    "reward_function_kwargs": by_rule("rewards", default=None),
    "score_function": by_rule("rewards", default=None),  # its name until 2025-05
    "reward_function_name": by_rule("rewards", default=None),  # now behind the path
    "reward_type": by_rule("rewards", default="batch"),
    "skip_special_tokens": same("scoring.skip_special_tokens", True),
    "num_cpus": same("scoring.num_cpus", 1),
}
TRAINER = {
    "total_epochs": computed("train.num_steps", 15, shared.epochs, when=unless_set("trainer.max_steps")),
    "max_steps": converted("train.num_steps", None, int),
    "project_name": by_rule(default="easy_r1", also=("logging.trackers",)),
    "experiment_name": ignored("rlsys names a run by its folder"),
    "logger": computed("logging.trackers", ["console", "wandb"], rules.trackers),
    **dict.fromkeys(("nnodes", "n_gpus_per_node"), ignored(DEVICES)),
    "max_try_make_batch": converted("algorithm.groups.max_tries", 20, rules.max_tries, when=(FILTERS, FILTERED)),
    "critic_warmup": same("train.critic_warmup_steps", 0, when=HAS_CRITIC),
    "val_freq": converted("eval.every", -1, shared.at_least_0),
    "val_before_train": ignored("a run that evaluates also evaluates before training"),
    "val_only": unsupported("use the command rlsys eval", False),
    "val_generations_to_log": ignored("rlsys reports the metrics of an evaluation"),
    "save_freq": converted("checkpoint.every", -1, shared.at_least_0),
    "save_limit": converted("checkpoint.keep", -1, shared.kept_checkpoints),
    "save_model_only": unsupported("a checkpoint always holds everything that a run needs to continue", False),
    **dict.fromkeys(("save_checkpoint_path", "load_checkpoint_path", "find_last_checkpoint"), ignored(FOLDERS)),
    "ray_timeline": converted("logging.timeline", None, lambda value: value is not None),
}
OPTIONS: dict[str, TableRow] = {
    **{f"data.{name}": option for name, option in DATA.items()},
    **{f"algorithm.{name}": option for name, option in ALGORITHM.items()},
    **{f"worker.actor.{name}": option for name, option in ACTOR.items()},
    **{f"worker.critic.{name}": option for name, option in CRITIC.items()},
    **{
        f"worker.ref.{name}": ignored("rlsys loads the reference as it loads the learner; its options are reference.*")
        for name in ACTOR
    },
    **{f"worker.rollout.{name}": option for name, option in ROLLOUT.items()},
    **{f"worker.reward.{name}": option for name, option in REWARD.items()},
    "worker.hybrid_engine": ignored(DEVICES),
    **{f"trainer.{name}": option for name, option in TRAINER.items()},
}
ALIASES = {"trainer.total_episodes": "trainer.total_epochs", "data.format_prompt_path": "data.format_prompt"}
DIALECT = Dialect(
    name="easyr1",
    options=OPTIONS,
    rules=(rules.rewards, shared.fit_microbatch),
    versions=("2026.07",),
    default_version="2026.07",
    versions_of="EasyR1",
    unique_options=(
        *(name for name in OPTIONS if name.startswith("worker.")),
        *("data.rollout_batch_size", "data.mini_rollout_batch_size", "data.format_prompt", "trainer.val_freq"),
        *("algorithm.disable_kl", "algorithm.online_filtering", "trainer.save_limit"),
    ),
    aliases=ALIASES,
    interpolates=True,
    always={"data.chat_template": True, "data.eval": None, "learner.warmup_steps": 0},
)
