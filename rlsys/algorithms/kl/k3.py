"""The low-variance, non-negative estimator k3 (J. Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

import torch

from rlsys.algorithms.kl import register


@register("k3")
def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """`exp(d) - d - 1` with `d = ref_logprob - logprob`; both [B, T] float32, result [B, T], never negative."""
    difference = (ref_logprobs - logprobs).clamp(-80.0, 80.0)
    return torch.expm1(difference) - difference
