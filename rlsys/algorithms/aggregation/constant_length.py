"""A constant in place of the length, which favours neither short nor long responses (Dr. GRPO, arXiv:2503.20783)."""

from __future__ import annotations

import torch

from rlsys.algorithms.aggregation import register


@register("constant_length")
def constant_length(lengths: torch.Tensor, groups: torch.Tensor, *, length: int) -> torch.Tensor:
    """Return `1 / (length * N)` for every trajectory, [N] float64.

    Args:
        lengths: [N] int64.
        groups: [N] int64.
        length: number of tokens; the paper takes the longest response allowed.
    """
    return torch.full(lengths.shape, 1.0 / (length * max(len(lengths), 1)), dtype=torch.float64)
