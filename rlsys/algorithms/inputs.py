"""What every per-token function of a microbatch reads, and the arithmetic that several of them share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MAX_LOG_RATIO = 80.0
"""Beyond it exp() would overflow float32. A bound for arithmetic, not for training: what an extreme ratio may weigh is
for the loss's clip to say (ppo_clip's `dual_clip` where the advantage is negative)."""


@dataclass(frozen=True)
class LossInputs:
    """Token-aligned tensors of one microbatch, all [B, T]; float32 but the masks, which are bool.

    A row is one trajectory. What stands outside `loss_mask` is never read.
    """

    logprobs: torch.Tensor  # under the policy being trained; carries the gradient
    old_logprobs: torch.Tensor  # of the proximal policy: what the ratio is taken to (train.old_logprobs)
    advantages: torch.Tensor
    loss_mask: torch.Tensor
    ref_logprobs: torch.Tensor | None = None
    behavior_logprobs: torch.Tensor | None = None  # of the engine that sampled
    entropy: torch.Tensor | None = None  # of the policy being trained; with gradient when there is a bonus
    selected: torch.Tensor | None = None  # bool: the tokens that the policy loss's own selection chose
    high_entropy: torch.Tensor | None = None  # bool: the tokens left to the policy gradient; None is all


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
