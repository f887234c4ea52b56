"""A constant in place of the length, so that nothing favours short or long responses (Dr. GRPO, arXiv:2503.20783)."""

from __future__ import annotations

import torch

from rlsys.algorithms.aggregation import register


@register("constant_length")
def constant_length(lengths: torch.Tensor, groups: torch.Tensor, *, length: int) -> torch.Tensor:
    """1 over `length` and over the update's trajectories. [N] int64, [N] int64 -> [N] float64.

    Args:
        length: in tokens; the paper takes the longest response allowed.
    """
    return torch.full(lengths.shape, 1.0 / (length * max(len(lengths), 1)), dtype=torch.float64)
