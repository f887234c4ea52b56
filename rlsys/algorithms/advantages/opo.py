"""On-policy RL with the optimal reward baseline (arXiv:2505.23585)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.grouped import all_equal, group_sum


@register("opo", min_group_size=2)
def opo(inputs: AdvantageInputs) -> torch.Tensor:
    """Return reward minus the group's mean weighted by response length, [N] (equation 10).

    That baseline gives the least variance when the squared gradient of a response grows with its length.
    """
    rewards, groups = inputs.rewards, inputs.groups
    lengths = inputs.lengths.double()  # [N]; products with long lengths would lose digits in float32
    baseline = group_sum(lengths * rewards, groups) / group_sum(lengths, groups).clamp(min=1)
    return torch.where(all_equal(rewards, groups), 0.0, rewards - baseline)
