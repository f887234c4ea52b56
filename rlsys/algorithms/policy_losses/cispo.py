"""Clipped importance sampling weights (MiniMax-M1, arXiv:2506.13585).

The weight is clipped instead of the objective, so no token loses its gradient.
"""

from __future__ import annotations

import torch

from rlsys.algorithms.inputs import LossInputs, log_ratio
from rlsys.algorithms.policy_losses import PolicyLoss, register


@register("cispo")
def cispo(inputs: LossInputs, *, ratio_max: float = 5.0) -> PolicyLoss:
    """Return `-sg[min(ratio, ratio_max)] * A * logprob`, [B, T].

    This is equation 4 without a lower bound, as in the paper's runs; sg stops the gradient.

    Args:
        inputs: tensors [B, T].
        ratio_max: largest weight; 5 is the value of ScaleRL (arXiv:2510.13786). TRL calls it `epsilon_high`.
    """
    # Detached: the gradient flows through logprob alone, at every token.
    ratio = torch.exp(log_ratio(inputs)).detach()
    per_token = -ratio.clamp(max=ratio_max) * inputs.advantages * inputs.logprobs
    return PolicyLoss(per_token, torch.zeros_like(inputs.loss_mask))
