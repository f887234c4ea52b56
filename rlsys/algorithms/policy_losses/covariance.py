"""Clip-Cov and KL-Cov (arXiv:2505.22617).

A few tokens, those whose log-probability and advantage covary most, drive the entropy down. Both losses hold these
tokens back: one takes their gradient away, the other penalises their movement.
"""

from __future__ import annotations

import torch

from rlsys.algorithms.inputs import LossInputs, clipped_surrogate, log_ratio
from rlsys.algorithms.policy_losses import PolicyLoss, register
from rlsys.algorithms.selection import UpdateTokens, covariances


def _draw_from_band(
    tokens: UpdateTokens, *, ratio: float = 2e-4, cov_low: float = 1.0, cov_high: float = 5.0
) -> torch.Tensor:
    """Draw a share `ratio` of all tokens, at least one, from those with a covariance in [cov_low, cov_high].

    Where fewer tokens are eligible, all of them are drawn.
    """
    values = covariances(tokens)
    eligible = ((values >= cov_low) & (values <= cov_high)).nonzero().squeeze(1)
    # A generator of its own with the update's seed: every rank draws the same tokens.
    order = torch.randperm(len(eligible), generator=torch.Generator().manual_seed(tokens.seed))
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[eligible[order[: max(1, int(ratio * len(values)))]]] = True
    return chosen


def _largest(tokens: UpdateTokens, *, ratio: float = 2e-3) -> torch.Tensor:
    """Choose the share `ratio` of all tokens (at least one) with the largest covariance."""
    values = covariances(tokens)
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.topk(min(len(values), max(1, int(ratio * len(values))))).indices] = True
    return chosen


@register("clip_cov", selects=_draw_from_band)
def clip_cov(
    inputs: LossInputs,
    *,
    ratio: float = 2e-4,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PolicyLoss:
    """Return the clipped surrogate, without gradient at the tokens drawn at random, [B, T].

    Args:
        inputs: tensors [B, T].
        ratio: share of all tokens of the update that loses its gradient.
        cov_low: smallest covariance of the tokens to draw from.
        cov_high: largest covariance of the tokens to draw from.
        clip_low: lower clip, as in ppo_clip.
        clip_high: upper clip, as in ppo_clip.
    """
    assert inputs.selected is not None
    per_token, clipped = clipped_surrogate(torch.exp(log_ratio(inputs)), inputs.advantages, clip_low, clip_high)
    return PolicyLoss(torch.where(inputs.selected, 0.0, per_token), clipped | inputs.selected)


@register("kl_cov", selects=_largest, min_updates=2)
def kl_cov(inputs: LossInputs, *, ratio: float = 2e-3, coef: float = 1.0) -> PolicyLoss:
    """Return `-ratio * A`, plus `coef * |logprob - old_logprob|` at the tokens with the largest covariance, [B, T].

    Args:
        inputs: tensors [B, T].
        ratio: share of all tokens of the update that gets the penalty.
        coef: weight of the penalty.
    """
    assert inputs.selected is not None
    difference = log_ratio(inputs)
    per_token = -torch.exp(difference) * inputs.advantages
    penalty = torch.where(inputs.selected, coef * difference.abs(), 0.0)
    return PolicyLoss(per_token + penalty, torch.zeros_like(inputs.loss_mask))
