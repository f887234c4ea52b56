"""OpenRLHF's `train_ppo_ray` flags: dotted as since 0.10 (read at 0.11.2), flat as before (read at 0.9.10)."""

from __future__ import annotations

from dataclasses import replace

from rlsys.commands.importers.dialects import openrlhf_rules as rules
from rlsys.commands.importers.dialects import shared
from rlsys.commands.importers.dialects.trl import SAMPLING
from rlsys.commands.importers.options import (
    Condition,
    Dialect,
    Noted,
    Option,
    UnsupportedError,
    by_map,
    by_rule,
    computed,
    converted,
    ignored,
    mapped,
    needs,
    only_if,
    option,
    plain,
    same,
    switched,
    unless,
    unless_set,
    unsupported,
    without,
)
from rlsys.commands.importers.recipe import ABSENT, NONE_STATED

DEVICES = "devices are set where the run starts: cluster.num_gpus, learner.num_workers, rollout.num_workers"
MEMORY = "how much is computed at once is learner.microbatch_tokens"
FOLDERS = "a run goes to runs/NAME/TIME with its checkpoints; run_dir=... chooses"
OWN_STATE = "checkpoints/step-N holds DeepSpeed's state, and the policy as a Hugging Face folder"
KERNELS = "how layers are computed is the learner's own matter (learner.packing)"
OWN_WAY = "weights travel by weights.backend; engines go on with their requests while they arrive"
TEXT_ONLY = "policies are text models here"

ESTIMATOR, LOSS, FILTERING = "algo.advantage.estimator", "actor.policy_loss_type", "algo.dynamic_filtering_enable"
CLIP_LOW, CLIP_HIGH = "algorithm.policy_loss.clip_low", "algorithm.policy_loss.clip_high"
FILTERED = unless(ESTIMATOR, "gae", "reinforce")  # these learn from equal rewards too
CORRECTED = (
    unless(f"{rules.IS}level", "off", reason="no correction is asked for"),
    unless(LOSS, "gspo", reason="with gspo the response's ratio is taken to the engine: train.old_logprobs=engine"),
)
HAS_CRITIC = only_if(ESTIMATOR, "gae", reason="only gae has a critic")
HAS_LORA = needs("ds.lora.rank", "ds.lora.rank is 0")
HAS_WANDB = needs("logger.wandb.key", "logger.wandb.key is not set")
KL_OPTIONS = ("algo.kl.estimator", "algo.kl.use_loss", "algo.kl.unbiased_gradient")
HAS_GRADIENT = Condition(
    KL_OPTIONS,
    lambda kind, in_loss, is_unbiased: not in_loss or kind != "k1" or is_unbiased,
    "k1 in the loss has a gradient of expectation 0; wrote kl.coef=0",
    is_loss=True,
)
HAS_KL = Condition(
    ("algo.kl.init_coef", *KL_OPTIONS),
    lambda coef, *kl: float(coef) != 0 and HAS_GRADIENT.holds(*kl),
    "there is no KL",
)
EVALUATED = Condition(
    ("eval.dataset", "eval.steps"),
    lambda dataset, steps: bool(dataset) and int(steps) > 0,
    "nothing is evaluated during training",
)
BATCH: dict[str, Option] = {
    "rollout.batch_size": converted("train.prompts_per_step", 1024, int),
    "rollout.n_samples_per_prompt": same("train.samples_per_prompt", 1),
    "train.batch_size": computed("train.minibatches_per_step", 128, rules.minibatches),
    "train.max_epochs": same("train.updates_per_step", 1),
    "train.num_episodes": computed("train.num_steps", 1, rules.episodes),
    "data.max_samples": by_rule(default=NONE_STATED, also=("train.num_steps",)),
    "rollout.vllm_generate_batch_size": computed(
        "algorithm.groups.oversample",
        None,
        shared.oversample,
        when=(needs(FILTERING, "without dynamic filtering a step samples its own prompts"), FILTERED),
    ),
    **dict.fromkeys(
        ("rollout.micro_batch_size", "train.micro_batch_size", "train.dynamic_batch_enable"), ignored(MEMORY)
    ),
    "rollout.max_tokens_per_gpu": ignored(MEMORY),
    "train.max_tokens_per_gpu": by_rule(
        "learner.microbatch_tokens",
        default=NONE_STATED,
        when=needs("train.dynamic_batch_enable", "train.dynamic_batch_enable is not set"),
    ),
}
GENERATION = {
    "rollout.temperature": same("rollout.temperature", 1.0),
    "rollout.top_p": unsupported(SAMPLING, 1.0, (None, 1, 1.0)),
    "rollout.max_new_tokens": by_rule("rollout.max_response_tokens", default=None),
    "data.max_len": by_rule("data.max_prompt_tokens", "rollout.max_response_tokens", default=2048),
    "vllm.num_engines": ignored(DEVICES),
    "vllm.tensor_parallel_size": same("rollout.tensor_parallel_size", 1),
    "vllm.gpu_memory_utilization": same("rollout.gpu_memory_utilization", 0.95),
    "vllm.enforce_eager": same("rollout.enforce_eager", False),
    "vllm.enable_prefix_caching": ignored("a prompt is cached for its own samples, and never across weights"),
    **dict.fromkeys(("vllm.sync_backend", "vllm.sync_with_ray", "vllm.enable_sleep"), ignored(OWN_WAY)),
}
ALGORITHM = {
    "algo.advantage.estimator": mapped("algorithm.advantage", "gae", rules.ESTIMATORS, UnsupportedError(
        "there is no '{value}' here; wrote grpo", {"name": "grpo"})),
    "algo.advantage.gamma": converted("algorithm.advantage.gamma", 1.0, float, neutral=(1, 1.0), when=(
        unless(ESTIMATOR, "reinforce", reason="rewards are not discounted here", is_loss=True),
        only_if(ESTIMATOR, "gae", reason="'{0}' does not discount"))),
    "algo.advantage.lambd": converted("algorithm.advantage.lam", 1.0, float, when=only_if(
        ESTIMATOR, "gae", reason="only gae has it")),
    "algo.advantage.no_std_norm": unsupported("reinforce_pp and gae divide by the deviation here", False, when=only_if(
        ESTIMATOR, "gae", "reinforce", "reinforce_baseline", reason="'{0}' is not normalised over the batch")),
    "algo.advantage.is_correction_enable": by_rule("algorithm.corrections", default=False),  # 0.10
    "algo.advantage.is_correction_type": by_rule(
        "algorithm.corrections", default=NONE_STATED, when=CORRECTED),  # 0.10
    "algo.advantage.is_correction_level": option("off", {
        "train.old_logprobs": rules.old_logprobs, "algorithm.corrections": rules.corrections},
        keys=(), also=("algorithm.corrections",)),
    "algo.advantage.is_correction_mode": by_rule("algorithm.corrections", default="mask", when=CORRECTED),
    "algo.advantage.is_correction_gating": by_rule("algorithm.corrections", default="ratio", when=(
        *CORRECTED, only_if(f"{rules.IS}gating", "ratio", reason="masks look at the ratio here; wrote no correction",
        is_loss=True))),
    "algo.advantage.is_correction_threshold": by_rule("algorithm.corrections", default=[0.5, 5.0], when=CORRECTED),
    "algo.kl.init_coef": computed("algorithm.kl.coef", 0.01, shared.zero_unless(HAS_GRADIENT)),
    "algo.kl.estimator": same("algorithm.kl.name", "k1", when=(HAS_GRADIENT, HAS_KL)),
    "algo.kl.use_loss": computed("algorithm.kl.apply_to", False, rules.kl_place, when=HAS_KL),
    "algo.kl.unbiased_gradient": converted("algorithm.kl.unbiased", False, bool, when=(
        HAS_KL, needs("algo.kl.use_loss", "the KL is in the reward"))),
    "algo.kl.target": converted("algorithm.kl.target", None, float, when=HAS_KL),
    "algo.kl.horizon": converted("algorithm.kl.horizon", 10000, int, when=(
        HAS_KL, needs("algo.kl.target", "algo.kl.target is not set"))),
    "algo.dynamic_filtering_enable": switched(
        "algorithm.groups.zero_variance", False, Noted("resample",
        "there a group's mean must lie within the range; here its rewards must not all be equal, the same for rewards "
        "of 0 and 1"), neutral=(False,), when=replace(FILTERED, reason=shared.EQUAL_REWARDS, is_loss=True)),
    "algo.dynamic_filtering_range": by_rule(default=[0, 1], also=("algorithm.groups.zero_variance",), when=needs(
        FILTERING, "dynamic filtering is off")),
    "actor.policy_loss_type": option("ppo", {
        "algorithm.policy_loss.name": by_map({"ppo": "ppo_clip", "gspo": "gspo"}, UnsupportedError(
            "there is no '{value}' here; wrote ppo_clip", "ppo_clip")),
        "algorithm.aggregation": by_map({"gspo": {"name": "sequence_mean"}})},
        keys=("algorithm.policy_loss.name",), also=("algorithm.aggregation",)),
    "actor.loss_agg_mode": mapped("algorithm.aggregation", "token-mean", rules.AGGREGATIONS, UnsupportedError(
        "there is no '{value}' here; wrote token_mean", {"name": "token_mean"}), when=unless(
        LOSS, "gspo", reason="gspo is a mean over responses")),
    "actor.eps_clip": option(0.2, {CLIP_LOW: plain(float), CLIP_HIGH: plain(float)}, when=unless_set(
        "actor.eps_clip_low_high", "eps_clip_low_high decides")),
    "actor.eps_clip_low_high": option(None, {
        CLIP_LOW: plain(lambda bounds: float(bounds[0])), CLIP_HIGH: plain(lambda bounds: float(bounds[1]))}),
    "actor.dual_clip": converted("algorithm.policy_loss.dual_clip", None, float, when=unless(
        LOSS, "gspo", reason="gspo has no second bound here", is_loss=True)),
    "actor.entropy_coef": converted("algorithm.entropy.coef", None, float),
    "actor.aux_loss_coef": unsupported("experts are not balanced by a loss here", 0, (None, 0, 0.0)),
    "ptx_coef": ignored("there is no pre-training data beside the prompts"),
}  # fmt: skip
REWARD = {
    "reward.model_name_or_path": by_rule(
        "rewards", default=None, when=without("reward.remote_url", "reward.remote_url decides")
    ),
    "reward.remote_url": by_rule("rewards", default=None),
    "reward.overlong_buffer_len": by_rule("rewards", default=None),
    "reward.overlong_penalty_factor": by_rule(
        default=1, also=("rewards",), when=needs("reward.overlong_buffer_len", "reward.overlong_buffer_len is not set")
    ),
    "reward.clip_range": unsupported("rewards are not clipped here; within the range nothing changes", [-10, 10]),
    "reward.normalize_enable": unsupported("rewards are not normalised over the run here", False),
    "reward.stop_properly_penalty_coef": unsupported(
        "the reward of a truncated response is not scaled here; algorithm.groups.mask_truncated=true leaves it out, "
        "and the reward soft_overlong_punishment charges for length"
    ),
    "train.agent_func_path": unsupported("agents of OpenRLHF have another interface; write an environment or a reward"),
}
ACTOR = {
    "actor.model_name_or_path": same("model.path", NONE_STATED),
    "actor.gradient_checkpointing_enable": same("learner.gradient_checkpointing", False),
    "actor.gradient_checkpointing_reentrant": ignored(KERNELS),
    "actor.freeze_visual_encoder": ignored(TEXT_ONLY),
    "actor.optim": unsupported("the optimizer is AdamW", "adam", ("adam",)),
    "actor.adam.lr": same("learner.lr", 1e-6),
    "actor.adam.betas": converted("learner.betas", [0.9, 0.95], lambda value: [float(beta) for beta in value]),
    "actor.adam.eps": same("learner.eps", 1e-8),
    "actor.adam.weight_decay": same("learner.weight_decay", 0.0),
    "actor.lr_scheduler": mapped("learner.lr_schedule", "cosine_with_min_lr", shared.SCHEDULES, shared.OTHER_SCHEDULE),
    "actor.min_lr_ratio": ignored("schedules end at 0 here", 0.1),
    "actor.lr_warmup_ratio": computed("learner.warmup_steps", 0.03, shared.share_of_updates),
    "actor.max_norm": same("learner.max_grad_norm", 1.0),
    "ds.zero_stage": same("learner.zero_stage", 2),
    "ds.adam_offload": same("learner.offload_optimizer", False),
    "ds.param_dtype": mapped("learner.dtype", "bf16", {"bf16": "bfloat16"}, shared.OTHER_DTYPE),
    "ds.lora.rank": same("learner.lora.rank", 0),
    "ds.lora.alpha": converted("learner.lora.alpha", 16, float, when=HAS_LORA),
    "ds.lora.dropout": converted("learner.lora.dropout", 0, float, when=HAS_LORA),
    "ds.lora.target_modules": same("learner.lora.target_modules", "all-linear", when=HAS_LORA),
    "ds.load_in_4bit": switched(
        "learner.lora.quantize_base",
        False,
        "nf4",
        neutral=(False,),
        when=Condition(
            ("ds.lora.rank",), bool, "a quantized policy is trained by adapters: set ds.lora.rank", is_loss=True
        ),
    ),
    "ds.ring_attn_size": unsupported("a sequence stays on one device", 1, (None, 1)),
    "ds.tensor_parallel_size": unsupported("the learner is sharded by learner.zero_stage", 1, (None, 1)),
    "train.enable_ema": unsupported("no average of the policy is kept", False),
    "train.async_enable": by_rule("train.max_staleness", default=False),
    "train.async_queue_size": converted(
        "train.max_staleness",
        1,
        int,
        when=needs("train.async_enable"),
        note="there batches wait in a queue; here it is a hard bound on their age",
    ),
    "train.partial_rollout_enable": ignored(OWN_WAY),
    "train.seed": same("seed", 42),
    "train.full_determinism_enable": unsupported("rollout.seeded=true repeats sampling; kernels are not fixed", False),
}
CRITIC = {
    "critic.value_clip": same("critic.value_clip", 0.5, when=HAS_CRITIC),
    "critic.freezing_steps": converted("train.critic_warmup_steps", -1, shared.at_least_0, when=HAS_CRITIC),
    "critic.adam.lr": same("critic.lr", 9e-6, when=HAS_CRITIC),
    "critic.adam.betas": same("critic.betas", [0.9, 0.95], when=HAS_CRITIC),
    "critic.adam.eps": same("critic.eps", 1e-8, when=HAS_CRITIC),
    "critic.adam.weight_decay": same("critic.weight_decay", 0.0, when=HAS_CRITIC),
    "critic.max_norm": same("critic.max_grad_norm", 1.0, when=HAS_CRITIC),
    "critic.model_name_or_path": unsupported("the critic starts from the policy, with a new head", when=HAS_CRITIC),
    "critic.lr_scheduler": mapped(
        "critic.lr_schedule", "cosine_with_min_lr", shared.SCHEDULES, shared.OTHER_SCHEDULE, when=HAS_CRITIC
    ),
    "critic.min_lr_ratio": replace(ignored("schedules end at 0 here", 0.1), when=HAS_CRITIC),
    "critic.lr_warmup_ratio": computed("critic.warmup_steps", 0.03, shared.share_of_updates, when=HAS_CRITIC),
    "critic.optim": unsupported("the optimizer is AdamW", "adam", ("adam",)),
    "critic.save_value_network": ignored(OWN_STATE),
    "ds.value_head_prefix": ignored("the critic's head is its own"),
}
DATA = {
    "data.prompt_dataset": computed("data.train", None, rules.training_data, reads_none=True),
    "data.prompt_split": by_rule(default="train", also=("data.train",)),
    "data.prompt_probs": by_rule(default=None, also=("data.train",)),
    "data.input_key": same("data.prompt_column", "input"),
    "data.label_key": converted("data.columns", None, lambda key: ABSENT if key == "label" else {"label": str(key)}),
    "data.input_template": converted(
        "data.prompt_template", None, lambda template: str(template).replace("{}", "{{ content }}")
    ),
    "data.apply_chat_template": same("data.chat_template", False),
    "eval.dataset": computed("data.eval", None, rules.held_out_data),
    "eval.split": by_rule(default="train", also=("data.eval",), when=EVALUATED),
    "eval.steps": converted("eval.every", -1, shared.at_least_0, when=needs("eval.dataset", "")),
    "eval.temperature": converted("eval.temperature", 0.6, float, when=EVALUATED),
    "eval.n_samples_per_prompt": converted("eval.num_samples", 4, int, when=EVALUATED, note="beside a greedy response"),
    "data.max_images_per_prompt": unsupported(TEXT_ONLY, 0, (None, 0)),
    **dict.fromkeys(
        ("data.image_key", "data.disable_fast_tokenizer", "data.dataloader_num_workers"), ignored(TEXT_ONLY)
    ),
}
RUN = {
    "ckpt.save_steps": converted("checkpoint.every", -1, shared.at_least_0),
    "ckpt.max_num": same("checkpoint.keep", 3),
    **dict.fromkeys(("ckpt.path", "ckpt.output_dir", "ckpt.load_enable"), ignored(f"{FOLDERS}, resume=auto continues")),
    **dict.fromkeys(("ckpt.save_hf", "ckpt.disable_ds", "ckpt.max_mem", "ds.use_universal_ckpt"), ignored(OWN_STATE)),
    "ckpt.best_metric_key": unsupported("the last policy is kept; choose another by metrics.jsonl", "", (None, "")),
    "logger.wandb.key": by_rule("logging.trackers", default=None, note="not written: W&B reads WANDB_API_KEY"),
    "logger.wandb.project": by_rule(default="openrlhf_train_ppo", also=("logging.trackers",), when=HAS_WANDB),
    "logger.wandb.org": by_rule(default=None, also=("logging.trackers",), when=HAS_WANDB),
    "logger.wandb.group": unsupported("runs are not grouped"),
    "logger.wandb.run_name": ignored("a run is named by its folder"),
    "logger.tensorboard_dir": computed(
        "logging.trackers",
        None,
        rules.trackers,
        reads_none=True,
        notes={None: "unset, nothing is written for TensorBoard"},
    ),
    "logger.logging_steps": ignored("every step is written to metrics.jsonl"),
}
UNUSED = {
    DEVICES: (
        *(f"{role}.num_nodes" for role in ("actor", "critic", "ref", "reward")),
        *(f"{role}.num_gpus_per_node" for role in ("actor", "critic", "ref", "reward")),
        "train.colocate_all", "train.colocate_actor_ref", "train.colocate_critic_reward", "ref.offload",
        "reward.offload", "actor_init_on_gpu", "rollout_tasks_per_gpu", "local_rank", "perf"),
    KERNELS: ("ds.packing_samples", "ds.attn_implementation", "ds.experts_implementation", "ds.use_liger_kernel",
              "ds.deepcompile", "ds.ring_attn_head_stride"),
    "DeepSpeed's own tuning has no effect on what is learned": (
        "ds.zpg", "ds.grad_accum_dtype", "ds.overlap_comm", "ds.enable_sleep", "fsdp2_enable_sleep"),
    "no average of the policy is kept": ("train.ema_beta",),
    "the optimizer is AdamW": tuple(
        f"{role}.muon.{name}" for role in ("actor", "critic")
        for name in ("lr", "momentum", "ns_steps", "nesterov", "no_nesterov")),
    "models and data come from the Hugging Face hub or a folder": ("use_ms",),
}  # fmt: skip
OPTIONS: dict[str, Option] = {
    **BATCH, **GENERATION, **ALGORITHM, **REWARD, **ACTOR, **CRITIC, **DATA, **RUN,
    **{name: ignored(reason) for reason, names in UNUSED.items() for name in names},
}  # fmt: skip
FLAT = {
    "pretrain": "actor.model_name_or_path", "reward_pretrain": "reward.model_name_or_path",
    "critic_pretrain": "critic.model_name_or_path", "remote_rm_url": "reward.remote_url",
    "prompt_data": "data.prompt_dataset", "prompt_data_probs": "data.prompt_probs", "prompt_split": "data.prompt_split",
    "eval_dataset": "eval.dataset", "eval_split": "eval.split", "eval_steps": "eval.steps",
    "eval_temperature": "eval.temperature", "eval_n_samples_per_prompt": "eval.n_samples_per_prompt",
    "input_key": "data.input_key", "label_key": "data.label_key", "input_template": "data.input_template",
    "apply_chat_template": "data.apply_chat_template", "max_samples": "data.max_samples", "max_len": "data.max_len",
    "disable_fast_tokenizer": "data.disable_fast_tokenizer", "dataloader_num_workers": "data.dataloader_num_workers",
    "rollout_batch_size": "rollout.batch_size", "micro_rollout_batch_size": "rollout.micro_batch_size",
    "vllm_generate_batch_size": "rollout.vllm_generate_batch_size", "temperature": "rollout.temperature",
    "n_samples_per_prompt": "rollout.n_samples_per_prompt", "top_p": "rollout.top_p",
    "max_new_tokens": "rollout.max_new_tokens", "generate_max_len": "rollout.max_new_tokens",
    "rollout_max_tokens_per_gpu": "rollout.max_tokens_per_gpu", "train_max_tokens_per_gpu": "train.max_tokens_per_gpu",
    "train_batch_size": "train.batch_size", "micro_train_batch_size": "train.micro_batch_size",
    "use_dynamic_batch": "train.dynamic_batch_enable", "max_epochs": "train.max_epochs",
    "num_episodes": "train.num_episodes", "seed": "train.seed", "full_determinism": "train.full_determinism_enable",
    "async_train": "train.async_enable", "async_queue_size": "train.async_queue_size",
    "partial_rollout": "train.partial_rollout_enable", "enable_ema": "train.enable_ema", "ema_beta": "train.ema_beta",
    "agent_func_path": "train.agent_func_path", "colocate_all_models": "train.colocate_all",
    "colocate_actor_ref": "train.colocate_actor_ref", "colocate_critic_reward": "train.colocate_critic_reward",
    "eps_clip": "actor.eps_clip", "eps_clip_low_high": "actor.eps_clip_low_high", "dual_clip": "actor.dual_clip",
    "policy_loss_type": "actor.policy_loss_type", "entropy_loss_coef": "actor.entropy_coef",
    "aux_loss_coef": "actor.aux_loss_coef", "gradient_checkpointing": "actor.gradient_checkpointing_enable",
    "gradient_checkpointing_use_reentrant": "actor.gradient_checkpointing_reentrant",
    "actor_learning_rate": "actor.adam.lr", "critic_learning_rate": "critic.adam.lr", "adam_betas": "actor.adam.betas",
    "l2": "actor.adam.weight_decay", "max_norm": "actor.max_norm", "lr_scheduler": "actor.lr_scheduler",
    "lr_warmup_ratio": "actor.lr_warmup_ratio", "value_clip": "critic.value_clip",
    "freezing_actor_steps": "critic.freezing_steps", "save_value_network": "critic.save_value_network",
    "advantage_estimator": "algo.advantage.estimator", "gamma": "algo.advantage.gamma",
    "lambd": "algo.advantage.lambd", "no_advantage_std_norm": "algo.advantage.no_std_norm",
    "enable_vllm_is_correction": "algo.advantage.is_correction_enable",
    "vllm_is_correction_type": "algo.advantage.is_correction_type",
    "vllm_is_truncated_threshold": "algo.advantage.is_correction_threshold",
    "init_kl_coef": "algo.kl.init_coef", "kl_estimator": "algo.kl.estimator", "use_kl_loss": "algo.kl.use_loss",
    "kl_target": "algo.kl.target", "kl_horizon": "algo.kl.horizon",
    "dynamic_filtering": "algo.dynamic_filtering_enable",
    "dynamic_filtering_reward_range": "algo.dynamic_filtering_range",
    "reward_clip_range": "reward.clip_range", "normalize_reward": "reward.normalize_enable",
    "overlong_buffer_len": "reward.overlong_buffer_len", "overlong_penalty_factor": "reward.overlong_penalty_factor",
    "stop_properly_penalty_coef": "reward.stop_properly_penalty_coef", "ref_reward_offload": "ref.offload",
    "vllm_num_engines": "vllm.num_engines", "vllm_tensor_parallel_size": "vllm.tensor_parallel_size",
    "vllm_gpu_memory_utilization": "vllm.gpu_memory_utilization", "enforce_eager": "vllm.enforce_eager",
    "enable_prefix_caching": "vllm.enable_prefix_caching", "vllm_sync_backend": "vllm.sync_backend",
    "vllm_sync_with_ray": "vllm.sync_with_ray", "vllm_enable_sleep": "vllm.enable_sleep",
    "save_steps": "ckpt.save_steps", "max_ckpt_num": "ckpt.max_num", "max_ckpt_mem": "ckpt.max_mem",
    "ckpt_path": "ckpt.path", "save_path": "ckpt.output_dir", "load_checkpoint": "ckpt.load_enable",
    "save_hf_ckpt": "ckpt.save_hf", "disable_ds_ckpt": "ckpt.disable_ds", "best_metric_key": "ckpt.best_metric_key",
    "use_ds_universal_ckpt": "ds.use_universal_ckpt", "zero_stage": "ds.zero_stage", "zpg": "ds.zpg",
    "adam_offload": "ds.adam_offload", "param_dtype": "ds.param_dtype", "deepcompile": "ds.deepcompile",
    "attn_implementation": "ds.attn_implementation", "use_liger_kernel": "ds.use_liger_kernel",
    "grad_accum_dtype": "ds.grad_accum_dtype", "overlap_comm": "ds.overlap_comm",
    "deepspeed_enable_sleep": "ds.enable_sleep", "ds_tensor_parallel_size": "ds.tensor_parallel_size",
    "packing_samples": "ds.packing_samples", "load_in_4bit": "ds.load_in_4bit", "lora_rank": "ds.lora.rank",
    "lora_alpha": "ds.lora.alpha", "target_modules": "ds.lora.target_modules", "lora_dropout": "ds.lora.dropout",
    "ring_attn_size": "ds.ring_attn_size", "ring_head_stride": "ds.ring_attn_head_stride",
    "value_head_prefix": "ds.value_head_prefix", "use_wandb": "logger.wandb.key",
    "wandb_project": "logger.wandb.project", "wandb_org": "logger.wandb.org", "wandb_group": "logger.wandb.group",
    "wandb_run_name": "logger.wandb.run_name", "use_tensorboard": "logger.tensorboard_dir",
    "logging_steps": "logger.logging_steps",
    **{f"{role}_{name}": f"{role}.{name}" for role in ("actor", "critic", "ref", "reward")
       for name in ("num_nodes", "num_gpus_per_node")},
}  # fmt: skip
"""Flags as they were called until 0.9, to their names since."""
DIALECT = Dialect(
    name="openrlhf",
    options=OPTIONS,
    prepare=(rules.settle,),
    rules=(rules.lengths, rules.rewards, rules.critic),
    versions=("0.9", "0.10", "0.11"),
    default_version="0.11",
    versions_of="OpenRLHF",
    unique_options=(*OPTIONS, "pretrain", "prompt_data", "rollout_batch_size", "n_samples_per_prompt", "init_kl_coef"),
    aliases=FLAT,
    always={"data.overlong": "filter", "eval.every": 0, "learner.warmup_steps": 0},
)
