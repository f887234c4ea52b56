"""Maximum likelihood reinforcement learning (arXiv:2602.02710)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.advantages.grpo import centre
from rlsys.algorithms.grouped import group_mean


@register("maxrl", min_group_size=2)
def maxrl(inputs: AdvantageInputs, *, eps: float = 1e-6) -> torch.Tensor:
    """`(r - mean) / (mean + eps)` within the group, [N], for rewards that are not negative (0 and 1 in the paper).

    Divided by the success rate, the gradient approaches that of the likelihood of a correct answer as samples grow.
    """
    return centre(inputs) / (group_mean(inputs.rewards, inputs.groups).clamp(min=0.0) + eps)
