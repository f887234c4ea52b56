"""Every token weighs the same (DAPO, arXiv:2503.14476, equation 12)."""

from __future__ import annotations

import torch

from rlsys.algorithms.aggregation import register
from rlsys.types import LossTotals


@register("token_mean")
def token_mean(per_token: torch.Tensor, loss_mask: torch.Tensor, totals: LossTotals) -> torch.Tensor:
    """Sum over trained tokens divided by their number in the whole step. [B, T], [B, T] -> scalar."""
    return torch.where(loss_mask, per_token, 0.0).sum() / max(totals.num_tokens, 1)
