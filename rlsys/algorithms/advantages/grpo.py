"""Group-relative advantages: GRPO (DeepSeekMath, arXiv:2402.03300, section 4.1) and Dr. GRPO (arXiv:2503.20783)."""

from __future__ import annotations

from typing import Literal

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.grouped import all_equal, group_mean, group_std


@register("grpo", min_group_size=2)
def grpo(
    inputs: AdvantageInputs, *, scale: Literal["group", "batch", "none"] = "group", eps: float = 1e-4
) -> torch.Tensor:
    """Return `(r - mean) / (std + eps)`, [N]; 0 where a group's rewards are all equal or it has one member.

    Args:
        inputs: the step's rewards.
        scale: the unbiased standard deviation (over n - 1) to divide by: of the `group`, of the whole `batch`
            (arXiv:2508.08221), or `none`.
        eps: added to the standard deviation; 1e-4 as in TRL.
    """
    rewards, groups = inputs.rewards, inputs.groups
    centered = centre(inputs)
    if scale == "group":
        return centered / (group_std(rewards, groups) + eps)
    if scale == "batch" and len(rewards) > 1:  # the deviation of a single reward is undefined
        return centered / (rewards.std() + eps)
    return centered


@register("dr_grpo", min_group_size=2)
def dr_grpo(inputs: AdvantageInputs) -> torch.Tensor:
    """Return `r - mean` within the group, [N]; without the division, prompts of all difficulties weigh the same."""
    return centre(inputs)


def centre(inputs: AdvantageInputs) -> torch.Tensor:
    """Return reward minus the group's mean, [N]; exactly 0 where the group's rewards are all equal."""
    rewards, groups = inputs.rewards, inputs.groups
    # The mean of equal numbers can differ from them in the last bit, and a later division would amplify that.
    return torch.where(all_equal(rewards, groups), 0.0, rewards - group_mean(rewards, groups))
