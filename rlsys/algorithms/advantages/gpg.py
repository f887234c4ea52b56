"""Group policy gradient (arXiv:2504.02546)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.advantages.grpo import centre
from rlsys.algorithms.grouped import all_equal


@register("gpg", min_group_size=2, raw_rewards=True)
def gpg(inputs: AdvantageInputs) -> torch.Tensor:
    """Return `alpha * (r - mean)`, [N], with `alpha = N / (N - M)` (equation 6).

    M trajectories are in groups whose rewards are all equal. They contribute nothing, and alpha scales up the others so
    that the gradient does not shrink with their number.
    """
    useful = int((~all_equal(inputs.rewards, inputs.groups)).sum())  # N - M of the docstring
    return centre(inputs) * (len(inputs.rewards) / max(useful, 1))
