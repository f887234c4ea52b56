"""Equal weight for every trajectory, whatever its length (GRPO, arXiv:2402.03300, equation 3)."""

from __future__ import annotations

import torch

from rlsys.algorithms.aggregation import register


@register("sequence_mean")
def sequence_mean(lengths: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return 1 / (tokens of the trajectory * N). [N] int64, [N] int64 -> [N] float64."""
    return 1.0 / (lengths.double().clamp(min=1) * max(len(lengths), 1))
