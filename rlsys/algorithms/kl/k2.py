"""The quadratic estimator k2 (J. Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

import torch

from rlsys.algorithms.kl import register


@register("k2")
def k2(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Return `(logprob - ref_logprob)**2 / 2`, [B, T]; biased in value, but in the loss its gradient is the KL's."""
    return 0.5 * (logprobs - ref_logprobs) ** 2
