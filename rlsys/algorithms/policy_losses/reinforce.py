"""The plain policy gradient (Williams, 1992), without a ratio."""

from __future__ import annotations

import torch

from rlsys.algorithms.inputs import LossInputs
from rlsys.algorithms.policy_losses import PolicyLoss, register


@register("reinforce")
def reinforce(inputs: LossInputs) -> PolicyLoss:
    """Return `-A * logprob`, [B, T]; unbiased only in the first update of a step, where the data is on policy."""
    return PolicyLoss(-inputs.advantages * inputs.logprobs, torch.zeros_like(inputs.loss_mask))
