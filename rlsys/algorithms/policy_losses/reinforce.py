"""The plain policy gradient (Williams, 1992), without a ratio."""

from __future__ import annotations

import torch

from rlsys.algorithms.policy_losses import LossInputs, PolicyLoss, register


@register("reinforce")
def reinforce(inputs: LossInputs) -> PolicyLoss:
    """`-A * logprob`, [B, T]: unbiased for the first update of a step alone, where the data is on policy."""
    return PolicyLoss(-inputs.advantages * inputs.logprobs, torch.zeros_like(inputs.loss_mask))
