"""Maximum likelihood reinforcement learning (arXiv:2602.02710)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.advantages.grpo import centre
from rlsys.algorithms.grouped import group_mean
from rlsys.errors import RlsysError


@register("maxrl", min_group_size=2, raw_rewards=True)
def maxrl(inputs: AdvantageInputs, *, eps: float = 1e-6) -> torch.Tensor:
    """Return `(r - mean) / (mean + eps)` within the group, [N], for rewards that are not negative.

    In the paper rewards are 0 and 1, so the mean is the success rate. Divided by it, the gradient approaches that of
    the likelihood of a correct answer as the number of samples grows.

    Raises:
        RlsysError: a reward is negative, so the mean is no rate to divide by.
    """
    if bool((inputs.rewards < 0).any()):
        raise RlsysError(
            f"the advantage estimator 'maxrl' divides by the mean reward, but a reward is "
            f"{float(inputs.rewards.min()):g}: rewards must not be negative; choose another estimator or "
            "change the reward"
        )
    return centre(inputs) / (group_mean(inputs.rewards, inputs.groups) + eps)
