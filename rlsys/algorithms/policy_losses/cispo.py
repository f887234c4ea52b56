"""Clipped importance sampling weights (MiniMax-M1, arXiv:2506.13585): the weight is clipped, no token loses its
gradient."""

from __future__ import annotations

import torch

from rlsys.algorithms.policy_losses import LossInputs, PolicyLoss, log_ratio, register


@register("cispo")
def cispo(inputs: LossInputs, *, ratio_max: float = 5.0) -> PolicyLoss:
    """`-sg[min(ratio, ratio_max)] * A * logprob`, [B, T] (equation 4, without a lower bound, as in the paper's runs).

    Args:
        ratio_max: largest weight; 5 is what ScaleRL (arXiv:2510.13786) found, called `epsilon_high` in TRL.
    """
    ratio = torch.exp(log_ratio(inputs)).detach()
    per_token = -ratio.clamp(max=ratio_max) * inputs.advantages * inputs.logprobs
    return PolicyLoss(per_token, torch.zeros_like(inputs.loss_mask))
