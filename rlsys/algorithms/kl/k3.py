"""The low-variance, non-negative estimator k3 (J. Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

import torch

from rlsys.algorithms.inputs import MAX_LOG_RATIO
from rlsys.algorithms.kl import register


@register("k3")
def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Return `exp(d) - d - 1` with `d = ref_logprob - logprob`, never negative; all [B, T] float32."""
    difference = (ref_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(difference) - difference
