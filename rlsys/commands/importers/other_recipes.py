"""Recipes that are not of training by rewards: found by options that only such a training has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlsys.commands.importers.programs import OTHER_RL, PREFERENCES, REWARD_MODEL, SUPERVISED

ANSWERS_GIVEN = "training on given answers (supervised, on preferences, or of a reward model)"
# Options that decide it whatever the project: its config for GRPO has none of them.
ONLY_OTHERS: dict[str, str] = {
    **dict.fromkeys(
        ("packing", "packing_strategy", "eval_packing", "dataset_text_field", "completion_only_loss", "max_seq_length",
         "assistant_only_loss", "model.partial_pretrain", "data.prompt_dict_keys", "data.response_dict_keys"),
        SUPERVISED,
    ),
    **dict.fromkeys(
        ("rpo_alpha", "ld_alpha", "precompute_ref_log_probs", "f_divergence_type", "discopop_tau", "use_weighting",
         "loss_weights", "desirable_weight", "undesirable_weight", "orpo_alpha", "cpo_alpha", "simpo_gamma",
         "max_target_length", "chosen_key", "rejected_key", "data.chosen_key", "data.rejected_key"),
        PREFERENCES,
    ),
    **dict.fromkeys(("center_rewards_coefficient", "reward_model", "process_reward_model"), REWARD_MODEL),
    **dict.fromkeys(("normalize_advantages", "rloo_k"), OTHER_RL),
    "max_length": ANSWERS_GIVEN,
}  # fmt: skip
LOSSES_OF_PREFERENCES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
                         "aot_unpaired", "apo_zero", "apo_down", "discopop", "kto", "kto_pair", "simpo")  # fmt: skip


def other_training(options: Mapping[str, Any], by_rewards: Iterable[str]) -> tuple[str, str] | None:
    """Return the option that shows another training and what that is, None for one by rewards.

    `by_rewards`: options that only a training by rewards has; one of them outweighs the others.
    """
    if any(name in options for name in by_rewards):
        return None
    if options.get("loss_type") in LOSSES_OF_PREFERENCES:
        return "loss_type", PREFERENCES
    return next(((name, what) for name, what in ONLY_OTHERS.items() if _is_on(options.get(name))), None)


def _is_on(value: Any) -> bool:
    return bool(value) and not isinstance(value, Mapping)  # a section of that name is another thing
