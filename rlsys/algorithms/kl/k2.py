"""The quadratic estimator k2 (J. Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

import torch

from rlsys.algorithms.kl import register


@register("k2")
def k2(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """`(logprob - ref_logprob)**2 / 2`, [B, T]: biased in value; its gradient in the loss is that of the KL."""
    return 0.5 * (logprobs - ref_logprobs) ** 2
