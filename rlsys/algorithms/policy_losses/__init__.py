"""Policy losses: `f(inputs, *, options) -> PolicyLoss`, per token; masking and averaging happen elsewhere, once.

Losses whose ratio belongs to a whole response (gspo, gmpo) give every token of it the same value, so that
`aggregation=sequence_mean` is the mean over responses that their papers write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlsys.registry import Registry

MAX_LOG_RATIO = 80.0
"""Beyond it exp() would overflow float32; every clip has decided long before."""


@dataclass(frozen=True)
class LossInputs:
    """Token-aligned tensors of one microbatch, all [B, T]; float32 but the mask, which is bool."""

    logprobs: torch.Tensor  # under the policy being trained; carries the gradient
    old_logprobs: torch.Tensor  # under the policy before this step's first update
    advantages: torch.Tensor
    loss_mask: torch.Tensor
    ref_logprobs: torch.Tensor | None = None


@dataclass(frozen=True)
class PolicyLoss:
    """`per_token` [B, T] float32 to be minimised; `clipped` [B, T] bool marks tokens whose gradient the clip cut."""

    per_token: torch.Tensor
    clipped: torch.Tensor


PolicyLossFn = Callable[..., PolicyLoss]
registry: Registry[PolicyLossFn] = Registry("policy loss", __name__)
register = registry.register


def log_ratio(inputs: LossInputs) -> torch.Tensor:
    """`logprob - old_logprob`, [B, T]; 0 outside the mask, whatever stands there."""
    difference = torch.where(inputs.loss_mask, inputs.logprobs - inputs.old_logprobs, 0.0)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def response_mean(values: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Mean over each response's tokens, [B, T] -> [B, 1]; 0 for a response without tokens."""
    total = torch.where(loss_mask, values, 0.0).sum(dim=1, keepdim=True)
    return total / loss_mask.sum(dim=1, keepdim=True).clamp(min=1)


def clipped_surrogate(
    ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)` and where the clip was the smaller, [B, T]."""
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    return -torch.minimum(unclipped, clipped), (clipped < unclipped).detach()
