"""Soft adaptive policy optimization (arXiv:2511.20347): a smooth gate in place of the clip."""

from __future__ import annotations

import torch

from rlsys.algorithms.inputs import LossInputs, log_ratio
from rlsys.algorithms.policy_losses import PolicyLoss, register


@register("sapo")
def sapo(inputs: LossInputs, *, temperature_pos: float = 1.0, temperature_neg: float = 1.05) -> PolicyLoss:
    """Return `-A * sigmoid(tau * (ratio - 1)) * 4 / tau`, [B, T]; the gate's slope at ratio 1 is 1.

    Args:
        inputs: tensors [B, T].
        temperature_pos: tau where the advantage is positive.
        temperature_neg: tau elsewhere.
    """
    ratio = torch.exp(log_ratio(inputs))
    # A larger tau for negative advantages narrows the gate: they are the less stable ones.
    tau = torch.where(inputs.advantages > 0, temperature_pos, temperature_neg)
    gate = torch.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau
    return PolicyLoss(-gate * inputs.advantages, torch.zeros_like(inputs.loss_mask))
