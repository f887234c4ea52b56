"""TRL's options of what is trained: batches and steps, the optimizer, the loss."""

from __future__ import annotations

import math
from typing import Any

from rlsys.commands.importers.dialects import shared
from rlsys.commands.importers.dialects import trl_rules as rules
from rlsys.commands.importers.dialects.reasons import BALANCE
from rlsys.commands.importers.options import (
    ByVersion,
    Condition,
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
    unsupported,
    without,
)
from rlsys.commands.importers.recipe import NONE_STATED

OPTIMIZER = "rlsys trains with AdamW and float32 state; learner.offload_optimizer=true moves the state to the CPU"


def absent_before(version: str, value: Any) -> ByVersion:
    """Return the default of an option that came with `version`."""
    return ByVersion({version: value})


STEPS_COUNT = Condition(
    ("max_steps",), lambda count: int(count or -1) > 0, "it is not positive, so num_train_epochs counts"
)
EPOCHS_COUNT = Condition(("max_steps",), lambda count: int(count or -1) <= 0, "max_steps replaces it")
BATCH = {
    "per_device_train_batch_size": computed("train.prompts_per_step", 8, rules.prompts_per_step),
    "gradient_accumulation_steps": by_rule(default=1, also=("train.prompts_per_step", "train.minibatches_per_step")),
    "num_processes": by_rule(default=NONE_STATED, also=("train.prompts_per_step",)),  # accelerate's
    "generation_batch_size": by_rule("train.prompts_per_step", "train.minibatches_per_step", default=None),
    "steps_per_generation": by_rule("train.prompts_per_step", "train.minibatches_per_step", default=None),
    "num_generations": converted("train.samples_per_prompt", 8, int, also=("train.prompts_per_step",)),
    "num_iterations": converted("train.updates_per_step", 1, int),
    "max_steps": computed(
        "train.num_steps",
        -1,
        lambda recipe, updates: math.ceil(int(updates) / shared.updates_per_step(recipe)),
        when=STEPS_COUNT,
    ),
    "num_train_epochs": computed("train.num_steps", 3.0, shared.epochs, when=EPOCHS_COUNT),
}
WARMS_UP = unless(
    "lr_scheduler_type", "constant", reason="lr_scheduler_type=constant has no warm-up, constant_with_warmup has one"
)
NO_FLOAT16 = UnsupportedError("rlsys does not train in float16, so {key}={instead} was written", "bfloat16")
OPTIMIZATION = {
    "learning_rate": same("learner.lr", 1e-6),
    "lr_scheduler_type": mapped("learner.lr_schedule", "linear", shared.SCHEDULES, shared.OTHER_SCHEDULE),
    "lr_scheduler_kwargs": unsupported("schedules of rlsys have no options", neutral=(None,)),
    "warmup_steps": computed(
        "learner.warmup_steps",
        0,
        # Below 1 it is a share of all updates (transformers 5).
        lambda recipe, n: int(n) if float(n) >= 1 else shared.share_of_updates(recipe, n),
        when=WARMS_UP,
    ),
    "warmup_ratio": computed(
        "learner.warmup_steps",
        0.0,
        shared.share_of_updates,
        when=(WARMS_UP, without("warmup_steps", "warmup_steps replaces it")),
    ),
    "weight_decay": same("learner.weight_decay", 0.0),
    "adam_beta1": computed(
        "learner.betas", 0.9, lambda recipe, beta1: [float(beta1), float(recipe.value("adam_beta2"))]
    ),
    "adam_beta2": by_rule("learner.betas", default=0.999),
    "adam_epsilon": same("learner.eps", 1e-8),
    "max_grad_norm": same("learner.max_grad_norm", 1.0),
    "optim": unsupported(OPTIMIZER, "adamw_torch_fused", ("adamw_torch_fused", "adamw_torch", "adamw_hf", "adamw")),
    "optim_args": unsupported(OPTIMIZER),
    "gradient_checkpointing": same("learner.gradient_checkpointing", ByVersion({"0.18": False, "0.22": True})),
    "bf16": computed(
        "learner.dtype",
        ByVersion({"0.18": False, "0.19": None}),
        rules.dtype,
        reads_none=True,
        when=(without("fp16", ""), unless("dtype", "float16", "fp16")),
        notes={None: "unset: TRL trains in bfloat16"},
    ),
    "fp16": switched("learner.dtype", False, NO_FLOAT16, keys=(), also=("learner.dtype",)),
    "seed": same("seed", 42),
    "deepspeed": converted("learner.zero_stage", None, rules.zero_stage),
    "neftune_noise_alpha": unsupported("rlsys adds no noise to embeddings"),
    "label_smoothing_factor": unsupported("rlsys has no labels to smooth", 0.0, (0, 0.0)),
}
NOT_SAPO = unless("loss_type", "sapo", reason="loss_type=sapo does not clip")
NOT_CISPO = unless("loss_type", "cispo", reason="loss_type=cispo has one bound, epsilon_high")
NOT_CISPO_ALONE = Condition(
    ("loss_type", "epsilon_high"), lambda loss, high: loss != "cispo" or high is None, NOT_CISPO.reason
)
CLIPS_BY_TOKEN = Condition(
    ("importance_sampling_level", "loss_type"),
    lambda level, loss: level != "sequence" or loss not in rules.CLIPPED,
    "gspo has no second bound in rlsys",
    is_loss=True,
)
BY_SEQUENCE = Condition(
    ("loss_type", "importance_sampling_level"),
    lambda loss, level: level != "sequence" or loss in rules.CLIPPED,
    "the loss '{0}' of rlsys has a ratio per token",
    is_loss=True,
)
SAPO = only_if("loss_type", "sapo", reason="loss_type is not sapo")
HAS_REFERENCE = needs("beta", "beta=0 loads no reference")
ADAPTIVE = needs("use_adaptive_entropy")
CORRECTED = (
    needs("use_vllm", "use_vllm is false, so TRL corrects nothing"),
    needs("vllm_importance_sampling_correction"),
)
LOSS = {
    "loss_type": several(
        ByVersion({"0.18": "bnpo", "0.22": "dapo"}),
        {"algorithm.aggregation": rules.aggregation, "algorithm.policy_loss.name": rules.policy_loss},
        notes={
            "bnpo": "a local batch is per_device_train_batch_size rows in TRL, learner.microbatch_tokens tokens here"
        },
    ),
    "beta": converted("algorithm.kl.coef", ByVersion({"0.18": 0.04, "0.19": 0.0}), float),
    "use_bias_correction_kl": converted(
        "algorithm.kl.unbiased",
        ByVersion({"0.26": False, "1.10": True}),
        bool,
        when=(needs("beta", "beta=0 turns the KL penalty off"),),
    ),
    "epsilon": several(
        0.2,
        {
            "algorithm.policy_loss.clip_low": rules.lower_bound,
            "algorithm.policy_loss.clip_high": plain(float),
            "algorithm.policy_loss.ratio_max": plain(float),
        },
        keys=("algorithm.policy_loss.clip_low",),
        also=("algorithm.policy_loss.clip_high",),
        when=(NOT_SAPO, NOT_CISPO_ALONE),
    ),
    "epsilon_high": several(
        None,
        {"algorithm.policy_loss.clip_high": plain(float), "algorithm.policy_loss.ratio_max": plain(float)},
        when=NOT_SAPO,
    ),
    "delta": converted("algorithm.policy_loss.dual_clip", None, float, when=(NOT_CISPO, NOT_SAPO, CLIPS_BY_TOKEN)),
    "sapo_temperature_pos": converted(
        "algorithm.policy_loss.temperature_pos", absent_before("0.26", 1.0), float, when=SAPO, uses_newest=True
    ),
    "sapo_temperature_neg": converted(
        "algorithm.policy_loss.temperature_neg", absent_before("0.26", 1.05), float, when=SAPO, uses_newest=True
    ),
    **{
        f"vespo_{name}": unsupported("rlsys has no loss vespo", absent_before("1.0", value), (value, int(value)))
        for name, value in {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0}.items()
    },
    "importance_sampling_level": by_rule(
        default=absent_before("0.20", "token"), also=("algorithm.policy_loss.name",), when=BY_SEQUENCE
    ),
    "scale_rewards": mapped(
        "algorithm.advantage.scale",
        ByVersion({"0.18": True, "0.22": "group"}),
        {True: "group", False: "none", "group": "group", "batch": "batch", "none": "none"},
        UnsupportedError("rlsys has no scale '{value}', so {key}={instead} was written", "group"),
        words=("group", "batch", "none"),
        when=(
            unless(
                "multi_objective_aggregation",
                "normalize_then_sum",
                reason="normalize_then_sum scales every reward within its group",
            ),
        ),
    ),
    "multi_objective_aggregation": mapped(
        "algorithm.advantage.name",
        absent_before("0.27", "sum_then_normalize"),
        {"normalize_then_sum": "gdpo"},
    ),
    "mask_truncated_completions": same("algorithm.groups.mask_truncated", False),
    "top_entropy_quantile": same("algorithm.entropy.top_quantile", absent_before("0.20", 1.0)),
    "entropy_coef": converted("algorithm.entropy.coef", absent_before("1.8", 0.0), float),
    "use_adaptive_entropy": by_rule("algorithm.entropy.target", default=absent_before("1.8", False)),
    "entropy_coef_min": unsupported(
        "the lower bound of an adaptive coefficient is always 0 in rlsys",
        absent_before("1.8", 0.0),
        (0, 0.0),
        when=ADAPTIVE,
    ),
    **{
        f"entropy_{name}": converted(
            f"algorithm.entropy.{key}", absent_before("1.8", value), float, when=ADAPTIVE, uses_newest=True
        )
        for name, key, value in (
            ("coef_max", "max_coef", 1.0),
            ("coef_delta", "delta", 0.005),
            ("target", "target", 0.2),
        )
    },
    "sync_ref_model": by_rule(
        "algorithm.refresh.every",
        default=False,
        neutral=(False,),
        when=(
            Condition(("beta",), bool, "beta=0 loads no reference to synchronise; TRL refuses this too", is_loss=True),
        ),
    ),
    "ref_model_mixup_alpha": converted(
        "algorithm.refresh.alpha", 0.6, float, when=(HAS_REFERENCE, needs("sync_ref_model"))
    ),
    "ref_model_sync_steps": computed(
        "algorithm.refresh.every", 512, shared.whole_steps, when=(HAS_REFERENCE, needs("sync_ref_model"))
    ),
    "vllm_importance_sampling_correction": by_rule(
        "algorithm.corrections", default=absent_before("0.23", True), when=CORRECTED[:1]
    ),
    "vllm_importance_sampling_mode": computed(
        "algorithm.corrections",
        # Without the option 0.23 truncates by token.
        ByVersion({"0.23": "token_truncate", "0.26": "sequence_mask"}),
        rules.correction,
        when=CORRECTED,
        uses_newest=True,
    ),
    "vllm_importance_sampling_clip_max": by_rule(
        "algorithm.corrections",
        default=ByVersion({"0.23": 2.0, "0.26": 3.0}),
        when=CORRECTED,
        uses_newest=True,
        notes={None: "TRL sets no upper bound; 1e30 was written"},
    ),
    "vllm_importance_sampling_clip_min": by_rule(
        "algorithm.corrections", default=absent_before("1.6", None), when=CORRECTED
    ),
    "off_policy_mask_threshold": computed("algorithm.corrections", absent_before("0.27", None), rules.off_policy_mask),
    "router_aux_loss_coef": unsupported(BALANCE, ByVersion({"1.7": 0.001, "1.14": None}), (None, 0, 0.0)),
    "cast_lm_head_to_fp32": unsupported("the head has the policy's dtype in rlsys", absent_before("0.25", False)),
    "disable_dropout": ignored("rlsys trains without dropout, whatever the model's config.json has"),
}
