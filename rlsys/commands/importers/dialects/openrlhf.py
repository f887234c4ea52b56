"""OpenRLHF's `train_ppo_ray` flags, as in every release from 0.9.0 to 0.11.2: dotted since 0.10.4, flat before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlsys.commands.importers.dialects import openrlhf_rules as rules
from rlsys.commands.importers.dialects import shared
from rlsys.commands.importers.dialects.openrlhf_flags import FLAT
from rlsys.commands.importers.dialects.openrlhf_run import DATA, OWN_STATE, RUN, UNUSED
from rlsys.commands.importers.dialects.reasons import BALANCE, DEVICES, KERNELS, MEMORY, SAMPLING, TEXT_ONLY
from rlsys.commands.importers.options import (
    ByVersion,
    Condition,
    Dialect,
    Noted,
    TableRow,
    UnsupportedError,
    by_map,
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

OWN_WAY = "weights.backend chooses how weights travel; engines continue their requests while new weights arrive"

ESTIMATOR, LOSS, FILTERING = "algo.advantage.estimator", "actor.policy_loss_type", "algo.dynamic_filtering_enable"
CLIP_LOW, CLIP_HIGH = "algorithm.policy_loss.clip_low", "algorithm.policy_loss.clip_high"


def until_0_11_2(version: str, value: Any) -> ByVersion:
    """Return the default of an option that came with `version` and went with 0.11.2."""
    return ByVersion({version: value, "0.11.2": ABSENT})


FILTERED = unless(ESTIMATOR, "gae", "reinforce", "flash_reinforce")  # these learn from equal rewards too
CORRECTED = (
    unless(f"{rules.IS}level", "off", reason="no correction is asked for"),
    unless(
        LOSS, "gspo", reason="with gspo the ratio is taken to the engine's log-probabilities: train.old_logprobs=engine"
    ),
)
HAS_CRITIC = only_if(ESTIMATOR, "gae", reason="only gae has a critic")
HAS_LORA = needs("ds.lora.rank", "ds.lora.rank is 0")
KL_OPTIONS = ("algo.kl.estimator", "algo.kl.use_loss", "algo.kl.unbiased_gradient")
HAS_GRADIENT = Condition(
    KL_OPTIONS,
    lambda kind, in_loss, is_unbiased: not in_loss or kind != "k1" or is_unbiased,
    "the estimator k1 in the loss has an expected gradient of 0, so algorithm.kl.coef=0 was written",
    is_loss=True,
)
HAS_KL = Condition(
    ("algo.kl.init_coef", *KL_OPTIONS),
    lambda coef, *kl: float(coef) != 0 and HAS_GRADIENT.holds(*kl),
    "the KL penalty is off",
)
BATCH: dict[str, TableRow] = {
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
        when=(needs(FILTERING, "without dynamic filtering a step samples no more prompts than it trains on"), FILTERED),
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
    "rollout.max_new_tokens": by_rule("rollout.max_response_tokens", default=ByVersion({"0.9.0": 1024, "0.9.8": None})),
    "data.max_len": by_rule(
        "data.max_prompt_tokens", "rollout.max_response_tokens", default=ByVersion({"0.9.0": None, "0.9.8": 2048})
    ),
    "prompt_max_len": by_rule("data.max_prompt_tokens", default=ByVersion({"0.9.0": 1024, "0.9.8": ABSENT})),
    "vllm.num_engines": ignored(DEVICES),
    "vllm.tensor_parallel_size": same("rollout.tensor_parallel_size", 1),
    "vllm.gpu_memory_utilization": same("rollout.gpu_memory_utilization", 0.95),
    "vllm.enforce_eager": same("rollout.enforce_eager", False),
    "vllm.enable_prefix_caching": ignored("rlsys caches a prompt for its own samples, never across new weights"),
    **dict.fromkeys(("vllm.sync_backend", "vllm.sync_with_ray", "vllm.enable_sleep"), ignored(OWN_WAY)),
}
ALGORITHM = {
    "algo.advantage.estimator": mapped(
        "algorithm.advantage",
        "gae",
        rules.ESTIMATORS,
        UnsupportedError("rlsys has no estimator '{value}', so grpo was written", {"name": "grpo"}),
    ),
    "algo.advantage.gamma": converted(
        "algorithm.advantage.gamma",
        1.0,
        float,
        neutral=(1, 1.0),
        when=(
            unless(ESTIMATOR, "reinforce", reason="rlsys does not discount rewards for this estimator", is_loss=True),
            only_if(ESTIMATOR, "gae", reason="the estimator '{0}' does not discount"),
        ),
    ),
    "algo.advantage.lambd": converted(
        "algorithm.advantage.lam", 1.0, float, when=only_if(ESTIMATOR, "gae", reason="only gae uses it")
    ),
    "algo.advantage.no_std_norm": unsupported(
        "reinforce_pp and gae of rlsys always divide by the standard deviation",
        False,
        when=only_if(
            ESTIMATOR,
            "gae",
            "reinforce",
            "reinforce_baseline",
            reason="the estimator '{0}' does not normalise over the batch",
        ),
    ),
    "algo.advantage.is_correction_enable": by_rule("algorithm.corrections", default=until_0_11_2("0.9.0", False)),
    "algo.advantage.is_correction_type": by_rule(
        "algorithm.corrections", default=until_0_11_2("0.9.3", "tis"), when=CORRECTED
    ),
    "use_icepop": by_rule(
        "algorithm.corrections", default=ByVersion({"0.9.1": False, "0.9.3": ABSENT}), when=CORRECTED
    ),
    "algo.advantage.is_correction_level": several(
        ByVersion({"0.11.2": "off"}),
        {"train.old_logprobs": rules.old_logprobs, "algorithm.corrections": rules.corrections},
        keys=(),
        also=("algorithm.corrections",),
        uses_newest=True,
    ),
    "algo.advantage.is_correction_mode": by_rule(
        "algorithm.corrections", default=ByVersion({"0.11.2": "mask"}), when=CORRECTED, uses_newest=True
    ),
    "algo.advantage.is_correction_gating": by_rule(
        "algorithm.corrections",
        default=ByVersion({"0.11.2": "ratio"}),
        uses_newest=True,
        when=(
            *CORRECTED,
            only_if(
                f"{rules.IS}gating",
                "ratio",
                reason="masks of rlsys look at the ratio, so no correction was written",
                is_loss=True,
            ),
        ),
    ),
    "algo.advantage.is_correction_threshold": by_rule(
        "algorithm.corrections", default=ByVersion({"0.9.0": 2, "0.9.1": [0.5, 5.0]}), when=CORRECTED
    ),
    "algo.kl.init_coef": computed("algorithm.kl.coef", 0.01, shared.zero_unless(HAS_GRADIENT)),
    "algo.kl.estimator": same("algorithm.kl.name", "k1", when=(HAS_GRADIENT, HAS_KL)),
    "algo.kl.use_loss": computed("algorithm.kl.apply_to", False, rules.kl_place, when=HAS_KL),
    "algo.kl.unbiased_gradient": converted(
        "algorithm.kl.unbiased",
        ByVersion({"0.11.1": False}),
        bool,
        when=(HAS_KL, needs("algo.kl.use_loss", "the KL penalty is in the reward")),
    ),
    "algo.kl.target": converted("algorithm.kl.target", None, float, when=HAS_KL),
    "algo.kl.horizon": converted(
        "algorithm.kl.horizon", 10000, int, when=(HAS_KL, needs("algo.kl.target", "algo.kl.target is not set"))
    ),
    "algo.dynamic_filtering_enable": switched(
        "algorithm.groups.zero_variance",
        False,
        Noted(
            "resample",
            "OpenRLHF keeps a group whose mean lies within the range, rlsys one whose rewards are not all equal; for "
            "rewards of 0 and 1 this is the same",
        ),
        neutral=(False,),
        when=replace(FILTERED, reason=shared.EQUAL_REWARDS, is_loss=True),
    ),
    "algo.dynamic_filtering_range": by_rule(
        default=[0, 1], also=("algorithm.groups.zero_variance",), when=needs(FILTERING, "dynamic filtering is off")
    ),
    "actor.policy_loss_type": several(
        "ppo",
        {
            "algorithm.policy_loss.name": by_map(
                {"ppo": "ppo_clip", "gspo": "gspo"},
                UnsupportedError("rlsys has no loss '{value}', so ppo_clip was written", "ppo_clip"),
            ),
            "algorithm.aggregation": by_map({"gspo": {"name": "sequence_mean"}}),
        },
        keys=("algorithm.policy_loss.name",),
        also=("algorithm.aggregation",),
    ),
    "actor.loss_agg_mode": mapped(
        "algorithm.aggregation",
        ByVersion({"0.11.2": "token-mean"}),
        rules.AGGREGATIONS,
        UnsupportedError("rlsys has no aggregation '{value}', so token_mean was written", {"name": "token_mean"}),
        when=unless(LOSS, "gspo", reason="gspo is always a mean over responses"),
        uses_newest=True,
    ),
    "actor.eps_clip": several(
        0.2,
        {CLIP_LOW: plain(float), CLIP_HIGH: plain(float)},
        when=unless_set("actor.eps_clip_low_high", "eps_clip_low_high replaces it"),
    ),
    "actor.eps_clip_low_high": several(
        None, {CLIP_LOW: plain(lambda bounds: float(bounds[0])), CLIP_HIGH: plain(lambda bounds: float(bounds[1]))}
    ),
    "actor.dual_clip": converted(
        "algorithm.policy_loss.dual_clip",
        None,
        float,
        when=unless(LOSS, "gspo", reason="gspo has no second bound in rlsys", is_loss=True),
    ),
    "actor.entropy_coef": converted("algorithm.entropy.coef", None, float),
    "actor.aux_loss_coef": unsupported(BALANCE, 0, (None, 0, 0.0)),
    "ptx_coef": ignored("rlsys trains on no pre-training data beside the prompts"),
}
REWARD = {
    "reward.model_name_or_path": by_rule(
        "rewards", default=None, when=without("reward.remote_url", "reward.remote_url replaces it")
    ),
    "reward.remote_url": by_rule("rewards", default=None),
    "reward.overlong_buffer_len": by_rule("rewards", default=None),
    "reward.overlong_penalty_factor": by_rule(
        default=1, also=("rewards",), when=needs("reward.overlong_buffer_len", "reward.overlong_buffer_len is not set")
    ),
    "reward.clip_range": unsupported("rlsys does not clip rewards; rewards within the range are the same", [-10, 10]),
    "reward.normalize_enable": unsupported("rlsys does not normalise rewards over the run", False),
    "reward.stop_properly_penalty_coef": unsupported(
        "rlsys does not scale the reward of a truncated response: algorithm.groups.mask_truncated=true leaves the "
        "response out of training, and the reward soft_overlong_punishment penalises length"
    ),
    "train.agent_func_path": unsupported(
        "rlsys does not run OpenRLHF's agents, which have another interface: write a reward"
    ),
}
ACTOR = {
    "actor.model_name_or_path": same("model.path", NONE_STATED),
    "actor.gradient_checkpointing_enable": same("learner.gradient_checkpointing", False),
    "actor.gradient_checkpointing_reentrant": ignored(KERNELS),
    "actor.freeze_visual_encoder": ignored(TEXT_ONLY),
    "actor.optim": unsupported("rlsys trains with AdamW", "adam", ("adam",)),
    "actor.adam.lr": same("learner.lr", 1e-6),
    "actor.adam.betas": converted("learner.betas", [0.9, 0.95], lambda value: [float(beta) for beta in value]),
    "actor.adam.eps": same("learner.eps", 1e-8),
    "actor.adam.weight_decay": same("learner.weight_decay", 0.0),
    "actor.lr_scheduler": mapped("learner.lr_schedule", "cosine_with_min_lr", shared.SCHEDULES, shared.OTHER_SCHEDULE),
    "actor.min_lr_ratio": ignored("schedules of rlsys end at 0", 0.1),
    "actor.lr_warmup_ratio": computed("learner.warmup_steps", 0.03, shared.share_of_updates),
    "actor.max_norm": same("learner.max_grad_norm", 1.0),
    "ds.zero_stage": same("learner.zero_stage", 2),
    "ds.adam_offload": same("learner.offload_optimizer", False),
    "ds.param_dtype": mapped("learner.dtype", ByVersion({"0.9.2": "bf16"}), {"bf16": "bfloat16"}, shared.OTHER_DTYPE),
    "bf16": switched("learner.dtype", ByVersion({"0.9.0": False, "0.9.2": ABSENT}), "bfloat16", "float32"),
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
            ("ds.lora.rank",), bool, "rlsys trains a quantized policy by adapters only: set ds.lora.rank", is_loss=True
        ),
    ),
    "ds.ring_attn_size": unsupported("rlsys keeps a sequence on one device", 1, (None, 1)),
    "ds.tensor_parallel_size": unsupported("learner.zero_stage shards the learner instead", 1, (None, 1)),
    "train.enable_ema": unsupported("rlsys keeps no moving average of the policy", False),
    "train.async_enable": by_rule("train.max_staleness", default=False),
    "train.async_queue_size": converted(
        "train.max_staleness",
        1,
        int,
        when=needs("train.async_enable"),
        note="OpenRLHF queues batches; in rlsys it is a hard bound on their staleness",
    ),
    "train.partial_rollout_enable": ignored(OWN_WAY),
    "train.seed": same("seed", 42),
    "train.full_determinism_enable": unsupported(
        "rlsys does not fix its kernels; rollout.seeded=true makes sampling repeatable", False
    ),
}
CRITIC = {
    "critic.value_clip": same("critic.value_clip", 0.5, when=HAS_CRITIC),
    "critic.freezing_steps": converted("train.critic_warmup_steps", -1, shared.at_least_0, when=HAS_CRITIC),
    "critic.adam.lr": same("critic.lr", 9e-6, when=HAS_CRITIC),
    "critic.adam.betas": same("critic.betas", [0.9, 0.95], when=HAS_CRITIC),
    "critic.adam.eps": same("critic.eps", 1e-8, when=HAS_CRITIC),
    "critic.adam.weight_decay": same("critic.weight_decay", 0.0, when=HAS_CRITIC),
    "critic.max_norm": same("critic.max_grad_norm", 1.0, when=HAS_CRITIC),
    "critic.model_name_or_path": unsupported(
        "the critic of rlsys starts from the policy, with a new head", when=HAS_CRITIC
    ),
    "critic.lr_scheduler": mapped(
        "critic.lr_schedule", "cosine_with_min_lr", shared.SCHEDULES, shared.OTHER_SCHEDULE, when=HAS_CRITIC
    ),
    "critic.min_lr_ratio": replace(ignored("schedules of rlsys end at 0", 0.1), when=HAS_CRITIC),
    "critic.lr_warmup_ratio": computed("critic.warmup_steps", 0.03, shared.share_of_updates, when=HAS_CRITIC),
    "critic.optim": unsupported("rlsys trains with AdamW", "adam", ("adam",)),
    "critic.save_value_network": ignored(OWN_STATE),
    "ds.value_head_prefix": ignored("the critic of rlsys has a head of its own"),
}
OPTIONS: dict[str, TableRow] = {
    **BATCH, **GENERATION, **ALGORITHM, **REWARD, **ACTOR, **CRITIC, **DATA, **RUN,
    **{name: ignored(reason) for reason, names in UNUSED.items() for name in names},
}  # fmt: skip
DIALECT = Dialect(
    name="openrlhf",
    options=OPTIONS,
    prepare=(rules.settle,),
    rules=(rules.lengths, rules.rewards, rules.critic),
    versions=("0.9.0", "0.9.1", "0.9.2", "0.9.3", "0.9.8", "0.10", "0.11.1", "0.11.2"),
    default_version="0.11.2",
    versions_of="OpenRLHF",
    unique_options=(*OPTIONS, "pretrain", "prompt_data", "rollout_batch_size", "n_samples_per_prompt", "init_kl_coef"),
    aliases=FLAT,
    always={"data.overlong": "filter", "eval.every": 0, "learner.warmup_steps": 0},
)
