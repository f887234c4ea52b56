"""Absolute difference of log-probabilities."""

from __future__ import annotations

import torch

from rlsys.algorithms.kl import register


@register("abs")
def absolute(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """`|logprob - ref_logprob|`, [B, T]: not a KL, but bounded in its gradient."""
    return (logprobs - ref_logprobs).abs()
