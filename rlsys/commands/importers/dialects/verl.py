"""verl's `main_ppo`: Hydra overrides in a script, or its YAML (verl/trainer/config/_generated_ppo_trainer.yaml, 0.9.1).

It counts prompts, as rlsys does: `data.train_batch_size` of them per step, `actor.ppo_mini_batch_size` of them per
optimizer update, `rollout.n` responses each.
"""

from __future__ import annotations

from dataclasses import replace

from rlsys.commands.importers.dialects import easyr1_rules, shared
from rlsys.commands.importers.dialects import verl_rules as rules
from rlsys.commands.importers.dialects.easyr1 import ESTIMATOR, FILTERED, HAS_CRITIC
from rlsys.commands.importers.dialects.easyr1 import OPTIONS as EASYR1
from rlsys.commands.importers.dialects.reasons import (
    DEVICES,
    FOLDERS,
    KERNELS,
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
    unless_set,
    unsupported,
)
from rlsys.commands.importers.recipe import NONE_STATED

ROLE = "actor_rollout_ref."
LOSS = f"{ROLE}actor.policy_loss.loss_mode"
IN_LOSS, IN_REWARD = f"{ROLE}actor.use_kl_loss", "algorithm.use_kl_in_reward"
FILTER, LORA = "algorithm.filter_groups.enable", f"{ROLE}model.lora_rank"
HAS_LORA = needs(LORA, "lora_rank is 0")
KL_IN_LOSS, KL_IN_REWARD = needs(IN_LOSS, "use_kl_loss is false"), needs(IN_REWARD, "use_kl_in_reward is false")
ONE_KL = Condition(
    (IN_LOSS,), lambda in_loss: not in_loss, "rlsys applies one KL penalty; that of the loss was written", is_loss=True
)
ADAPTS = (KL_IN_REWARD, only_if("algorithm.kl_ctrl.type", "adaptive", reason="kl_ctrl.type is not adaptive"))
CLIPS = only_if(LOSS, "vanilla", "gspo", "clip_cov", reason="loss_mode={0} does not use it")
CORRECTED = needs("algorithm.rollout_correction.rollout_is", "rollout_is is not set")
DATA: dict[str, TableRow] = {
    "train_files": converted("data.train", NONE_STATED, rules.files),
    "val_files": converted("data.eval", NONE_STATED, rules.files),
    **dict.fromkeys(
        ("train_max_samples", "val_max_samples"),
        unsupported("rlsys reads all rows: cut the data with data.options", -1, (None, -1)),
    ),
    "prompt_key": same("data.prompt_column", "prompt"),
    "max_prompt_length": same("data.max_prompt_tokens", 512),
    "max_response_length": same("rollout.max_response_tokens", 512),
    "train_batch_size": converted("train.prompts_per_step", 1024, int),
    "gen_batch_size": computed(
        "algorithm.groups.oversample", None, shared.oversample, when=(needs(FILTER, "nothing is filtered"), FILTERED)
    ),
    "shuffle": same("data.shuffle", True),
    "seed": same("seed", None),
    "filter_overlong_prompts": switched("data.overlong", False, "filter", "refuse"),
    "truncation": unsupported("rlsys cuts no prompt: data.overlong=filter leaves long ones out", "error", ("error",)),
    "apply_chat_template_kwargs": converted("data.chat_template_options", None, dict),
    "trust_remote_code": ignored("actor_rollout_ref.model.trust_remote_code decides this"),
    "custom_cls.path": unsupported("rlsys reads files and hub data, and functions of its own contract: data.train"),
    "reward_fn_key": ignored("rewards get every column"),
    "image_key": ignored(TEXT_ONLY),
    **dict.fromkeys(
        ("val_batch_size", "filter_overlong_prompts_workers", "return_raw_input_ids", "return_raw_chat",
         "return_full_prompt", "dataloader_num_workers", "validation_shuffle", "tokenizer", "use_shm"),
        ignored("rlsys reads and tokenises the prompts at the start of the run"),
    ),
}  # fmt: skip
ALGORITHM = {
    "adv_estimator": mapped("algorithm.advantage", "gae", rules.ESTIMATORS, rules.OTHER_ESTIMATOR),
    "norm_adv_by_std_in_grpo": switched(
        "algorithm.advantage.scale", True, "group", "none", when=only_if(ESTIMATOR, "grpo", reason="only grpo uses it")
    ),
    "gamma": converted("algorithm.advantage.gamma", 1.0, float, when=HAS_CRITIC),
    "lam": converted("algorithm.advantage.lam", 1.0, float, when=HAS_CRITIC),
    "use_kl_in_reward": computed("algorithm.kl.coef", False, rules.reward_coefficient, neutral=(False,), when=ONE_KL),
    "kl_penalty": mapped("algorithm.kl.name", "kl", rules.KL, rules.OTHER_KL, when=(ONE_KL, KL_IN_REWARD)),
    "kl_ctrl.kl_coef": by_rule("algorithm.kl.coef", default=1e-3, when=KL_IN_REWARD),
    "kl_ctrl.type": by_rule("algorithm.kl.target", default="fixed", when=KL_IN_REWARD),
    "kl_ctrl.horizon": converted("algorithm.kl.horizon", 10000, int, when=ADAPTS),
    "kl_ctrl.target_kl": converted("algorithm.kl.target", 0.1, float, when=ADAPTS),
    "filter_groups.enable": switched(
        "algorithm.groups.zero_variance",
        False,
        Noted("resample", "verl looks at the metric `filter_groups.metric`, rlsys at the total reward"),
        neutral=(False,),
        when=replace(FILTERED, reason=shared.EQUAL_REWARDS, is_loss=True),
    ),
    "filter_groups.metric": by_rule(default="reward", also=("algorithm.groups.zero_variance",)),
    "filter_groups.max_num_gen_batches": converted(
        "algorithm.groups.max_tries", 0, rules.max_tries, when=(needs(FILTER, "nothing is filtered"), FILTERED)
    ),
    "rollout_correction.rollout_is": computed("algorithm.corrections", None, rules.correction),
    "rollout_correction.rollout_is_threshold": by_rule("algorithm.corrections", default=2.0, when=CORRECTED),
    "rollout_correction.rollout_rs": unsupported("rlsys masks by the ratio: set algorithm.corrections"),
    "rollout_correction.bypass_mode": unsupported("set train.old_logprobs=engine", False),
    "use_pf_ppo": unsupported("rlsys does not resample responses by their reward", False),
}
ACTOR = {
    "strategy": unsupported(SHARDING, "fsdp", ("fsdp", "fsdp2")),
    "ppo_mini_batch_size": computed("train.minibatches_per_step", 256, rules.minibatches),
    "ppo_epochs": converted("train.updates_per_step", 1, int),
    "grad_clip": same("learner.max_grad_norm", 1.0),
    "clip_ratio": ignored("clip_ratio_low and clip_ratio_high have values of their own, which replace it"),
    "clip_ratio_low": converted("algorithm.policy_loss.clip_low", 0.2, float, when=CLIPS),
    "clip_ratio_high": several(0.2, {
        "algorithm.policy_loss.clip_high": plain(float),
        "algorithm.policy_loss.ratio_max": plain(lambda high: 1.0 + float(high)),
    }, when=only_if(LOSS, "vanilla", "gspo", "clip_cov", "cispo", reason="loss_mode={0} does not use it")),
    "clip_ratio_c": converted("algorithm.policy_loss.dual_clip", 3.0, float, when=only_if(
        LOSS, "vanilla", reason="loss_mode={0} does not use it")),
    "tau_pos": converted("algorithm.policy_loss.temperature_pos", 1.0, float, when=only_if(LOSS, "sapo")),
    "tau_neg": converted("algorithm.policy_loss.temperature_neg", 1.05, float, when=only_if(LOSS, "sapo")),
    "policy_loss.loss_mode": mapped("algorithm.policy_loss.name", "vanilla", rules.LOSSES, UnsupportedError(
        "rlsys has no loss '{value}' of this kind, so ppo_clip was written", "ppo_clip")),
    "loss_agg_mode": computed("algorithm.aggregation", "token-mean", rules.aggregation),
    "loss_scale_factor": by_rule("algorithm.aggregation", default=None),
    "entropy_coeff": converted("algorithm.entropy.coef", 0, float),
    "use_kl_loss": switched("algorithm.kl.apply_to", False, "loss", "reward"),
    "kl_loss_coef": converted("algorithm.kl.coef", 1e-3, float, when=KL_IN_LOSS),
    "kl_loss_type": mapped("algorithm.kl.name", "low_var_kl", rules.KL, rules.OTHER_KL, when=KL_IN_LOSS),
    "optim.lr": same("learner.lr", 1e-6),
    "optim.betas": converted("learner.betas", [0.9, 0.999], lambda value: [float(beta) for beta in value]),
    "optim.weight_decay": several(0.01, shared.decayed("learner")),
    "optim.lr_warmup_steps": computed("learner.warmup_steps", -1, rules.warmup_steps),
    "optim.lr_warmup_steps_ratio": computed("learner.warmup_steps", 0.0, rules.warmup_share),
    "optim.lr_scheduler_type": mapped("learner.lr_schedule", "constant", {"constant": "constant", "cosine": "cosine"},
        shared.OTHER_SCHEDULE),
    "optim.warmup_style": mapped("learner.lr_schedule", None, {"constant": "constant", "cosine": "cosine"},
        shared.OTHER_SCHEDULE),  # its name before
    "optim.min_lr_ratio": unsupported("schedules of rlsys end at 0", 0.0, (None, 0, 0.0)),
    "fsdp_config.optimizer_offload": same("learner.offload_optimizer", False),
    "fsdp_config.dtype": mapped("learner.dtype", "bfloat16", easyr1_rules.DTYPES, shared.OTHER_DTYPE),
    "fsdp_config.model_dtype": ignored("with learner.dtype=bfloat16 the master weights are float32"),
    **{f"fsdp_config.{name}": ignored(SHARDING) for name in (
        "param_offload", "fsdp_size", "reshard_after_forward", "forward_prefetch", "offload_policy")},
    **{name: ignored(MEMORY) for name in ("ppo_micro_batch_size", "ppo_micro_batch_size_per_gpu", "use_dynamic_bsz",
        "ppo_max_token_len_per_gpu")},
    **{name: ignored(KERNELS) for name in ("use_torch_compile", "use_fused_kernels", "use_remove_padding",
        "entropy_checkpointing", "entropy_from_logits_with_chunking", "calculate_entropy")},
    "ulysses_sequence_parallel_size": unsupported("rlsys keeps a sequence on one device", 1, (None, 1)),
    "shuffle": ignored("minibatches are whole groups in the order in which they were sampled"),
}  # fmt: skip
MODEL = {
    "path": same("model.path", NONE_STATED),
    "trust_remote_code": same("model.trust_remote_code", False),
    "custom_chat_template": same("model.chat_template", None),
    "override_config": unsupported("rlsys loads a model with its own config", None, (None, {})),
    "enable_gradient_checkpointing": same("learner.gradient_checkpointing", True),
    "lora_rank": same("learner.lora.rank", 0),
    "lora_alpha": converted("learner.lora.alpha", 16, float, when=HAS_LORA),
    "target_modules": same("learner.lora.target_modules", "all-linear", when=HAS_LORA),
    "exclude_modules": unsupported("learner.lora.target_modules names the modules", when=HAS_LORA),
    "lora_adapter_path": unsupported("it is not carried over: set model.adapter to start from this adapter"),
    **{name: ignored(KERNELS) for name in ("use_remove_padding", "use_fused_kernels", "use_liger", "use_shm",
        "enable_activation_offload", "external_lib")},
}  # fmt: skip
ROLLOUT = {
    "name": unsupported("rlsys samples with vLLM", "vllm", ("vllm",)),
    "mode": ignored("weights arrive while engines continue their requests"),
    "n": same("train.samples_per_prompt", 1),
    "temperature": converted("rollout.temperature", 1.0, shared.temperature),
    "do_sample": unsupported("rlsys samples for training at a positive temperature only", True, (None, True)),
    "top_p": unsupported(SAMPLING, 1, (None, 1, 1.0)),
    "top_k": unsupported(SAMPLING, -1, (None, 0, -1)),
    "gpu_memory_utilization": same("rollout.gpu_memory_utilization", 0.5),
    "tensor_model_parallel_size": same("rollout.tensor_parallel_size", 2),
    "enforce_eager": same("rollout.enforce_eager", False),
    "ignore_eos": same("rollout.ignore_eos", False),
    "max_num_seqs": same("rollout.max_num_seqs", 256),
    "val_kwargs.n": computed("eval.num_samples", 1, rules.evaluation_samples),
    "val_kwargs.do_sample": by_rule(default=False, also=("eval.num_samples",)),
    "val_kwargs.temperature": converted("eval.temperature", 0, float, when=needs(
        f"{ROLE}rollout.val_kwargs.do_sample", "do_sample is false: the evaluation is greedy")),
    **{f"val_kwargs.{name}": unsupported(SAMPLING, None, (None, 1, 1.0, 0, -1)) for name in ("top_p", "top_k")},
    "multi_turn.enable": unsupported("an episode of rlsys is one prompt and one response", False),
    **{name: ignored("vLLM's scheduler decides this") for name in ("max_num_batched_tokens", "max_model_len",
        "enable_chunked_prefill", "free_cache_engine", "load_format", "disable_log_stats", "enable_prefix_caching",
        "dtype", "calculate_log_probs", "layered_summon", "seed", "data_parallel_size")},
    **{name: ignored(MEMORY) for name in ("log_prob_micro_batch_size", "log_prob_micro_batch_size_per_gpu",
        "log_prob_use_dynamic_bsz", "log_prob_max_token_len_per_gpu")},
}  # fmt: skip
REF = {
    name: ignored("rlsys loads the reference as it loads the learner; its options are reference.*")
    for name in ("fsdp_config.param_offload", "log_prob_micro_batch_size", "log_prob_micro_batch_size_per_gpu",
                 "log_prob_use_dynamic_bsz", "log_prob_max_token_len_per_gpu", "strategy", "use_torch_compile",
                 "ulysses_sequence_parallel_size")
}  # fmt: skip
CRITIC = {
    "optim.lr": same("critic.lr", 1e-5, when=HAS_CRITIC),
    "optim.weight_decay": several(0.01, shared.decayed("critic"), when=HAS_CRITIC),
    "grad_clip": same("critic.max_grad_norm", 1.0, when=HAS_CRITIC),
    "cliprange_value": several(
        0.5,
        {"critic.value_clip": plain(float), "critic.dtype": plain(lambda _: "bfloat16")},
        keys=("critic.value_clip",),
        when=HAS_CRITIC,
    ),
    "model.enable_gradient_checkpointing": same("critic.gradient_checkpointing", True, when=HAS_CRITIC),
    "model.path": unsupported("the critic of rlsys starts from the policy, with a new head", when=HAS_CRITIC),
    "fsdp.optimizer_offload": same("critic.offload_optimizer", False, when=HAS_CRITIC),
    "optim.lr_warmup_steps_ratio": computed("critic.warmup_steps", 0.0, rules.warmup_share, when=HAS_CRITIC),
    **{name: ignored(MEMORY) for name in ("ppo_micro_batch_size", "ppo_micro_batch_size_per_gpu", "use_dynamic_bsz",
        "forward_micro_batch_size_per_gpu", "ppo_max_token_len_per_gpu", "ppo_mini_batch_size", "fsdp.param_offload",
        "model.use_remove_padding", "model.fsdp_config.param_offload", "model.fsdp_config.optimizer_offload")},
    **{name: ignored("only gae has a critic, and it trains once per step") for name in ("enable", "ppo_epochs")},
}  # fmt: skip
REWARD = {
    "reward.custom_reward_function.path": by_rule("rewards", default=None),
    "reward.custom_reward_function.name": by_rule("rewards", default="compute_score"),
    "reward.custom_reward_function.reward_kwargs": by_rule("rewards", default=None),
    "reward.reward_model.enable": by_rule("rewards", default=False),
    "reward.reward_model.model_path": by_rule("rewards", default=None),
    **{f"reward_model.overlong_buffer.{name}": by_rule(default=default, also=("rewards",)) for name, default in (
        ("enable", False), ("len", 0), ("penalty_factor", 0.0))},
    "reward.reward_manager.name": by_rule(default="naive", also=("rewards",)),
    **{name: ignored(MEMORY) for name in ("reward.num_workers", "reward_model.overlong_buffer.log",
        "reward_model.micro_batch_size_per_gpu")},
}  # fmt: skip
TRAINER = {
    "total_epochs": computed("train.num_steps", 30, shared.epochs, when=unless_set("trainer.total_training_steps")),
    "total_training_steps": converted("train.num_steps", None, int),
    "project_name": by_rule(default="verl_examples", also=("logging.trackers",)),
    "logger": computed("logging.trackers", ["console", "wandb"], easyr1_rules.trackers),
    "test_freq": converted("eval.every", -1, shared.at_least_0),
    "save_freq": converted("checkpoint.every", -1, shared.at_least_0),
    "max_actor_ckpt_to_keep": converted("checkpoint.keep", None, shared.kept_checkpoints, reads_none=True),
    "critic_warmup": same("train.critic_warmup_steps", 0, when=HAS_CRITIC),
    "val_only": unsupported("use the command rlsys eval", False),
    "val_before_train": ignored("a run that evaluates also evaluates before training"),
    **{name: ignored(DEVICES) for name in ("nnodes", "n_gpus_per_node", "device", "balance_batch")},
    **{name: ignored(FOLDERS) for name in ("default_local_dir", "default_hdfs_dir", "resume_mode", "resume_from_path",
        "experiment_name", "max_critic_ckpt_to_keep", "del_local_ckpt_after_load")},
    **{name: ignored(OWN_DISPLAY) for name in ("log_val_generations", "rollout_data_dir", "validation_data_dir")},
}  # fmt: skip
SECTIONS = {
    "data.": DATA, "algorithm.": ALGORITHM, f"{ROLE}actor.": ACTOR, f"{ROLE}model.": MODEL, f"{ROLE}rollout.": ROLLOUT,
    f"{ROLE}ref.": REF, "critic.": CRITIC, "": REWARD, "trainer.": TRAINER,
}  # fmt: skip
OPTIONS: dict[str, TableRow] = {
    **{f"{prefix}{name}": row for prefix, rows in SECTIONS.items() for name, row in rows.items()},
    f"{ROLE}hybrid_engine": ignored(DEVICES),
}
DIALECT = Dialect(
    name="verl",
    options=OPTIONS,
    rules=(rules.rewards, shared.fit_microbatch),
    versions=("0.9.1",),
    default_version="0.9.1",
    versions_of="verl",
    unique_options=tuple(name for name in OPTIONS if name not in EASYR1),
    aliases={
        "custom_reward_function.path": "reward.custom_reward_function.path",
        "custom_reward_function.name": "reward.custom_reward_function.name",
        "custom_reward_function.reward_kwargs": "reward.custom_reward_function.reward_kwargs",
        "reward_model.enable": "reward.reward_model.enable",
        "reward_model.model.path": "reward.reward_model.model_path",
        "reward_model.reward_manager": "reward.reward_manager.name",
        **{
            f"reward_model.reward_kwargs.overlong_buffer_cfg.{name}": f"reward_model.overlong_buffer.{name}"
            for name in ("enable", "len", "penalty_factor", "log")
        },
    },
    interpolates=True,
    always={
        "data.chat_template": True,
        "data.eval": None,
        "data.columns": {"answer": "reward_model.ground_truth"},
        "learner.warmup_steps": 0,
    },
)
