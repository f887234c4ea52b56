"""Clip-Cov and KL-Cov (arXiv:2505.22617): the few tokens whose log-probability and advantage covary most, and which
drive the entropy down, are kept from being pushed."""

from __future__ import annotations

import torch

from rlsys.algorithms.policy_losses import LossInputs, PolicyLoss, clipped_surrogate, log_ratio, register
from rlsys.algorithms.selection import UpdateTokens, covariances


def _by_lot(tokens: UpdateTokens, *, ratio: float = 2e-4, cov_low: float = 1.0, cov_high: float = 5.0) -> torch.Tensor:
    """`ratio` of all tokens (at least one), drawn from those whose covariance lies in [cov_low, cov_high]."""
    values = covariances(tokens)
    eligible = ((values >= cov_low) & (values <= cov_high)).nonzero().squeeze(1)
    lots = torch.randperm(len(eligible), generator=torch.Generator().manual_seed(tokens.seed))
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[eligible[lots[: max(1, int(ratio * len(values)))]]] = True
    return chosen


def _largest(tokens: UpdateTokens, *, ratio: float = 2e-3) -> torch.Tensor:
    """The `ratio` of all tokens (at least one) with the largest covariance."""
    values = covariances(tokens)
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.topk(min(len(values), max(1, int(ratio * len(values))))).indices] = True
    return chosen


@register("clip_cov", selects=_by_lot)
def clip_cov(
    inputs: LossInputs,
    *,
    ratio: float = 2e-4,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PolicyLoss:
    """The clipped surrogate, and no gradient at the tokens drawn by lot, [B, T].

    Args:
        ratio: share of all the update's tokens that loses its gradient.
        cov_low, cov_high: they are drawn from tokens with a covariance in between.
        clip_low, clip_high: as in ppo_clip.
    """
    assert inputs.selected is not None
    per_token, clipped = clipped_surrogate(torch.exp(log_ratio(inputs)), inputs.advantages, clip_low, clip_high)
    return PolicyLoss(torch.where(inputs.selected, 0.0, per_token), clipped | inputs.selected)


@register("kl_cov", selects=_largest, min_updates=2)
def kl_cov(inputs: LossInputs, *, ratio: float = 2e-3, coef: float = 1.0) -> PolicyLoss:
    """`-ratio * A`, and at the tokens with the largest covariance `coef * |logprob - old_logprob|` on top, [B, T].

    Args:
        ratio: share of all the update's tokens that carries the penalty.
        coef: its coefficient.
    """
    assert inputs.selected is not None
    difference = log_ratio(inputs)
    per_token = -torch.exp(difference) * inputs.advantages
    penalty = torch.where(inputs.selected, coef * difference.abs(), 0.0)
    return PolicyLoss(per_token + penalty, torch.zeros_like(inputs.loss_mask))
