"""The inputs of every function that works on a microbatch's tokens, and arithmetic that several of them share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# exp(88.7) overflows float32; 80 leaves a factor of 6,000 for advantages and sums. This bounds the arithmetic, not the
# training: the weight of an extreme ratio is limited by the loss's clip (ppo_clip's `dual_clip` where the advantage is
# negative).
MAX_LOG_RATIO = 80.0


@dataclass(frozen=True)
class LossInputs:
    """Token-aligned tensors of one microbatch, all [B, T]: masks bool, everything else float32.

    Each row is one trajectory. Values outside `loss_mask` never enter a result.
    """

    logprobs: torch.Tensor  # log-probabilities under the policy being trained; they carry the gradient
    old_logprobs: torch.Tensor  # denominator of the ratio (train.old_logprobs says whose)
    advantages: torch.Tensor
    loss_mask: torch.Tensor
    ref_logprobs: torch.Tensor | None = None
    behavior_logprobs: torch.Tensor | None = None  # log-probabilities under the engine that sampled
    entropy: torch.Tensor | None = None  # entropy of the policy being trained; carries a gradient when there is a bonus
    selected: torch.Tensor | None = None  # bool: tokens chosen by the policy loss's own selection
    high_entropy: torch.Tensor | None = None  # bool: tokens that the policy gradient uses; None is all


def log_ratio(inputs: LossInputs) -> torch.Tensor:
    """Return `logprob - old_logprob`, [B, T]; 0 outside the mask, even where values there are NaN."""
    # The mask comes before exp(): a NaN of padding would reach the gradient even through a mask of the result.
    difference = torch.where(inputs.loss_mask, inputs.logprobs - inputs.old_logprobs, 0.0)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def response_mean(values: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Average over each response's tokens, [B, T] -> [B, 1]; 0 for a response without tokens."""
    total = torch.where(loss_mask, values, 0.0).sum(dim=1, keepdim=True)  # [B, 1]
    return total / loss_mask.sum(dim=1, keepdim=True).clamp(min=1)


def clipped_surrogate(
    ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return PPO's surrogate and a mask of tokens whose gradient the clip cut, [B, T] each.

    The surrogate is `-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)`.
    """
    # The minimum is pessimistic: the clip removes a gain, never a loss.
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    return -torch.minimum(unclipped, clipped), (clipped < unclipped).detach()
