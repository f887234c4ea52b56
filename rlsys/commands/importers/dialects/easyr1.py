"""EasyR1: `examples/config.yaml` and the overrides of its scripts (verl/trainer/config.py, verl/workers/*/config.py).

Defaults are those of the dataclasses, not of the example, as they stood in July 2026.
"""

from __future__ import annotations

from rlsys.commands.importers.dialects import easyr1_rules as rules
from rlsys.commands.importers.dialects.trl import SAMPLING
from rlsys.commands.importers.options import (
    NONE_STATED,
    Dialect,
    Option,
    by_rule,
    converted,
    ignored,
    same,
    unsupported,
)

TEXT_ONLY = "policies are text models here"
DEVICES = "devices are set where the run starts: cluster.num_gpus, learner.num_workers, rollout.num_workers"
MEMORY = "how much is computed at once is learner.microbatch_tokens"
SHARDING = "DeepSpeed shards: learner.zero_stage"
FOLDERS = "a run goes to runs/NAME/TIME with its checkpoints; run_dir=... chooses, resume=auto continues"
ALWAYS = "metrics.jsonl and the display are always there"

DATA: dict[str, Option] = {
    "train_files": by_rule("data.train", default=""),
    "val_files": by_rule("data.eval", default=""),
    "prompt_key": same("data.prompt_column", "prompt"),
    "answer_key": by_rule("data.columns", default="answer"),
    "max_prompt_length": same("data.max_prompt_tokens", 512),
    "max_response_length": same("rollout.max_response_tokens", 512),
    "rollout_batch_size": by_rule("train.prompts_per_step", default=512),
    "mini_rollout_batch_size": by_rule("algorithm.groups.oversample", default=None),
    "val_batch_size": ignored("all held-out prompts are sampled together"),
    "format_prompt": same("data.prompt_template", None),
    "override_chat_template": same("model.chat_template", None),
    "shuffle": same("data.shuffle", True),
    "seed": by_rule("seed", default=1),
    "filter_overlong_prompts": converted("data.overlong", True, lambda value: "filter" if value else "refuse"),
    "filter_overlong_prompts_workers": ignored("prompts are tokenised at the start of the run"),
    **dict.fromkeys(
        ("image_key", "video_key", "image_dir", "video_fps", "min_pixels", "max_pixels"),
        ignored(f"{TEXT_ONLY}: columns of images and videos are left alone"),
    ),
}
ALGORITHM = {
    "gamma": by_rule("algorithm.advantage.gamma", default=1.0),
    "lam": by_rule("algorithm.advantage.lam", default=1.0),
    "adv_estimator": by_rule("algorithm.advantage", default="grpo"),
    "disable_kl": by_rule("algorithm.kl.coef", default=False),
    "use_kl_loss": by_rule("algorithm.kl.apply_to", default=False),
    "kl_penalty": by_rule("algorithm.kl.name", default="kl"),
    "kl_coef": by_rule("algorithm.kl.coef", default=1e-3),
    "kl_type": by_rule("algorithm.kl.target", default="fixed"),
    "kl_horizon": by_rule("algorithm.kl.horizon", default=1e4),
    "kl_target": by_rule("algorithm.kl.target", default=0.1),
    "online_filtering": by_rule("algorithm.groups.zero_variance", default=False),
    "filter_key": by_rule(default="overall", also=("algorithm.groups.zero_variance",)),
    "filter_low": by_rule(default=0.01, also=("algorithm.groups.zero_variance",)),
    "filter_high": by_rule(default=0.99, also=("algorithm.groups.zero_variance",)),
}
ACTOR = {
    "strategy": unsupported(SHARDING, "fsdp", ("fsdp", "fsdp2")),
    "global_batch_size": by_rule("train.minibatches_per_step", default=256),
    "max_grad_norm": same("learner.max_grad_norm", 1.0),
    "clip_ratio_low": by_rule("algorithm.policy_loss.clip_low", default=0.2),
    "clip_ratio_high": by_rule("algorithm.policy_loss.clip_high", "algorithm.policy_loss.ratio_max", default=0.3),
    "clip_ratio_dual": by_rule("algorithm.policy_loss.dual_clip", default=3.0),
    "tau_positive": by_rule("algorithm.policy_loss.temperature_pos", default=1.0),
    "tau_negative": by_rule("algorithm.policy_loss.temperature_neg", default=1.05),
    "loss_avg_mode": by_rule("algorithm.aggregation", default="token"),
    "loss_type": by_rule("algorithm.policy_loss.name", default="default"),
    "ppo_epochs": same("train.updates_per_step", 1),
    "padding_free": ignored("nothing is padded"),
    **dict.fromkeys(("micro_batch_size_per_device_for_update", "micro_batch_size_per_device_for_experience",
                     "dynamic_batching"), ignored(MEMORY)),
    "use_torch_compile": ignored("kernels are the learner's own matter"),
    "ulysses_size": unsupported("a sequence stays on one device", 1, (None, 1)),
    "ulysses_sequence_parallel_size": unsupported("a sequence stays on one device", 1, (None, 1)),
    "model.model_path": same("model.path", NONE_STATED),
    "model.tokenizer_path": unsupported("the tokenizer is the model's"),
    "model.override_config": unsupported("models are loaded as they are", None, (None, {})),
    "model.enable_gradient_checkpointing": same("learner.gradient_checkpointing", True),
    "model.trust_remote_code": same("model.trust_remote_code", True),
    "model.freeze_vision_tower": ignored(TEXT_ONLY),
    "model.lora.rank": same("learner.lora.rank", 0),
    "model.lora.alpha": by_rule("learner.lora.alpha", default=64),
    "model.lora.target_modules": by_rule("learner.lora.target_modules", default="all-linear"),
    "model.lora.exclude_modules": ignored(f"{TEXT_ONLY}: it leaves out the vision tower"),
    "optim.lr": same("learner.lr", 1e-6),
    "optim.betas": converted("learner.betas", [0.9, 0.999], lambda value: [float(beta) for beta in value]),
    "optim.weight_decay": same("learner.weight_decay", 1e-2),
    "optim.strategy": unsupported("optimizer state is float32", "adamw", ("adamw",)),
    "optim.lr_warmup_ratio": by_rule("learner.warmup_steps", default=0.0),
    "optim.lr_warmup_steps": by_rule("learner.warmup_steps", default=None),
    "optim.min_lr_ratio": by_rule("learner.lr_schedule", default=None),
    "optim.lr_scheduler_type": by_rule("learner.lr_schedule", default="constant"),
    "fsdp.torch_dtype": ignored("master weights are float32 where learner.dtype is bfloat16"),
    "fsdp.mp_param_dtype": by_rule("learner.dtype", default="bf16"),
    **{f"fsdp.{name}": ignored(SHARDING) for name in (
        "enable_full_shard", "enable_cpu_offload", "enable_rank0_init", "use_orig_params", "fsdp_size",
        "mp_reduce_dtype", "mp_buffer_dtype")},
    "offload.offload_params": ignored("parameters stay where they are trained; learner.zero_stage=3 divides them"),
    "offload.offload_optimizer": same("learner.offload_optimizer", False),
}  # fmt: skip
CRITIC = {
    **dict.fromkeys(ACTOR, ignored("the critic follows its own defaults: critic.*")),
    **dict.fromkeys(("loss_avg_mode", "ppo_epochs"), ignored("the critic's loss is a mean over tokens, once a step")),
    "cliprange_value": by_rule("critic.value_clip", default=0.5),
    "optim.lr": by_rule("critic.lr", default=1e-6),
    "model.enable_gradient_checkpointing": by_rule("critic.gradient_checkpointing", default=True),
    "optim.weight_decay": by_rule("critic.weight_decay", default=1e-2),
    "max_grad_norm": by_rule("critic.max_grad_norm", default=1.0),
    "offload.offload_optimizer": by_rule("critic.offload_optimizer", default=False),
}
ROLLOUT = {
    "name": unsupported("engines are vLLM's", "vllm", ("vllm",)),
    "n": same("train.samples_per_prompt", 1),
    "temperature": same("rollout.temperature", 1.0),
    "top_p": unsupported(SAMPLING, 1.0, (None, 1, 1.0)),
    "top_k": unsupported(SAMPLING, -1, (None, 0, -1)),
    "seed": ignored("data.seed decides; rollout.seeded=true gives every response a stream of its own"),
    "limit_images": unsupported(TEXT_ONLY, 0, (None, 0)),
    "dtype": ignored("engines have the learner's dtype (rollout.dtype)"),
    "gpu_memory_utilization": same("rollout.gpu_memory_utilization", 0.6),
    "ignore_eos": same("rollout.ignore_eos", False),
    "enforce_eager": same("rollout.enforce_eager", False),
    "enable_chunked_prefill": ignored("vLLM's scheduler decides"),
    "tensor_parallel_size": same("rollout.tensor_parallel_size", 2),
    "max_model_len": ignored("an engine's context is the longest prompt and response"),
    "max_num_batched_tokens": ignored("vLLM's scheduler decides; rollout.max_num_seqs bounds requests"),
    "val_override_config": by_rule("eval.num_samples", "eval.temperature", default=NONE_STATED),
    **dict.fromkeys(("disable_log_stats", "disable_tqdm"), ignored(ALWAYS)),
}
REWARD = {
    "reward_function": by_rule("rewards", default=None),
    "reward_function_kwargs": by_rule("rewards", default=None),
    "score_function": by_rule("rewards", default=None),  # its name until 2025-05
    "reward_function_name": by_rule("rewards", default=None),  # now behind the path
    "reward_type": by_rule("rewards", default="batch"),
    "skip_special_tokens": ignored("rewards see text without special tokens"),
    "num_cpus": same("scoring.num_cpus", 1),
}
TRAINER = {
    "total_epochs": by_rule("train.num_steps", default=15),
    "max_steps": by_rule("train.num_steps", default=None),
    "project_name": by_rule(default="easy_r1", also=("logging.trackers",)),
    "experiment_name": ignored("a run is named by its folder"),
    "logger": by_rule("logging.trackers", default=["console", "wandb"]),
    **dict.fromkeys(("nnodes", "n_gpus_per_node"), ignored(DEVICES)),
    "max_try_make_batch": by_rule("algorithm.groups.max_tries", default=20),
    "critic_warmup": by_rule("train.critic_warmup_steps", default=0),
    "val_freq": by_rule("eval.every", default=-1),
    "val_before_train": ignored("an evaluated run is evaluated before training too"),
    "val_only": unsupported("rlsys eval evaluates", False),
    "val_generations_to_log": ignored("evaluation is reported as a whole"),
    "save_freq": converted("checkpoint.every", -1, lambda value: max(int(value), 0)),
    "save_limit": by_rule("checkpoint.keep", default=-1),
    "save_model_only": unsupported("checkpoints always hold what a run needs to go on", False),
    **dict.fromkeys(("save_checkpoint_path", "load_checkpoint_path", "find_last_checkpoint"), ignored(FOLDERS)),
    "ray_timeline": converted("logging.timeline", None, lambda value: value is not None),
}
OPTIONS: dict[str, Option] = {
    **{f"data.{name}": option for name, option in DATA.items()},
    **{f"algorithm.{name}": option for name, option in ALGORITHM.items()},
    **{f"worker.actor.{name}": option for name, option in ACTOR.items()},
    **{f"worker.critic.{name}": option for name, option in CRITIC.items()},
    **{f"worker.ref.{name}": ignored("the reference is loaded as the learner is: reference.*") for name in ACTOR},
    **{f"worker.rollout.{name}": option for name, option in ROLLOUT.items()},
    **{f"worker.reward.{name}": option for name, option in REWARD.items()},
    "worker.hybrid_engine": ignored(DEVICES),
    **{f"trainer.{name}": option for name, option in TRAINER.items()},
}
ALIASES = {"trainer.total_episodes": "trainer.total_epochs", "data.format_prompt_path": "data.format_prompt"}
DIALECT = Dialect(
    name="easyr1",
    options=OPTIONS,
    rules=rules.RULES,
    versions=("2026.07",),
    default_version="2026.07",
    versions_of="EasyR1",
    unique_options=tuple(OPTIONS),
    aliases=ALIASES,
)
