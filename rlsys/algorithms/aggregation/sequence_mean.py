"""Every trajectory weighs the same, whatever its length (GRPO, arXiv:2402.03300, equation 3)."""

from __future__ import annotations

import torch

from rlsys.algorithms.aggregation import register
from rlsys.types import LossTotals


@register("sequence_mean")
def sequence_mean(per_token: torch.Tensor, loss_mask: torch.Tensor, totals: LossTotals) -> torch.Tensor:
    """Mean over each row's tokens, then over the step's trajectories. [B, T], [B, T] -> scalar."""
    lengths = loss_mask.sum(dim=1).clamp(min=1)
    rows = torch.where(loss_mask, per_token, 0.0).sum(dim=1) / lengths
    return rows.sum() / max(totals.num_trajectories, 1)
