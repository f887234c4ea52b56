"""The absolute difference of log-probabilities."""

from __future__ import annotations

import torch

from rlsys.algorithms.kl import register


@register("abs")
def absolute(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Return `|logprob - ref_logprob|`, [B, T]; not a KL, but its gradient is bounded."""
    return (logprobs - ref_logprobs).abs()
