"""Equal weight for every token, over the whole update (DAPO) or over each microbatch (bnpo)."""

from __future__ import annotations

import torch

from rlsys.algorithms.aggregation import register


@register("token_mean")
def token_mean(lengths: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return 1 / (tokens of the update) (arXiv:2503.14476, equation 12). [N] int64, [N] int64 -> [N] float64."""
    return torch.full(lengths.shape, 1.0 / max(int(lengths.sum()), 1), dtype=torch.float64)


@register("local_token_mean", local=True)
def local_token_mean(lengths: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the same over one microbatch, as many trainers do and TRL calls bnpo; it depends on the split."""
    return token_mean(lengths, groups)
