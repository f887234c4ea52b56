"""Group policy gradient (arXiv:2504.02546)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.advantages.grpo import centre
from rlsys.algorithms.grouped import all_equal


@register("gpg", min_group_size=2, raw_rewards=True)
def gpg(inputs: AdvantageInputs) -> torch.Tensor:
    """`alpha * (r - mean)`, [N], with `alpha = N / (N - M)` for M trajectories whose group's rewards are all equal:
    what they do not contribute is made up for by the others (equation 6)."""
    useful = int((~all_equal(inputs.rewards, inputs.groups)).sum())
    return centre(inputs) * (len(inputs.rewards) / max(useful, 1))
