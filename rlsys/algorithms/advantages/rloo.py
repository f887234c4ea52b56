"""REINFORCE leave-one-out (Kool et al., 2019; arXiv:2402.14740)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.advantages.grpo import centre
from rlsys.algorithms.grouped import group_size


@register("rloo", min_group_size=2)
def rloo(inputs: AdvantageInputs) -> torch.Tensor:
    """Return reward minus the mean of the *other* samples of the same prompt, [N]; 0 for a group of one."""
    # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
    sizes = group_size(inputs.rewards, inputs.groups)
    return centre(inputs) * sizes / (sizes - 1).clamp(min=1)
