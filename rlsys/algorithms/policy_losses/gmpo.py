"""Geometric-mean policy optimization (arXiv:2507.20673)."""

from __future__ import annotations

import torch

from rlsys.algorithms.inputs import LossInputs, log_ratio, response_mean
from rlsys.algorithms.policy_losses import PolicyLoss, register


@register("gmpo")
def gmpo(inputs: LossInputs, *, clip: float = 0.4) -> PolicyLoss:
    """Return `-A * exp(mean over tokens of the clipped log ratio)` of each response.

    Each token's log ratio is clipped to `[-clip, clip]` on the side where the advantage pushes it, as a minimum with
    the unclipped one (equation 4: bounds e^-0.4 and e^0.4).

    Returns: [B, T] with the response's value at every token; use `aggregation=sequence_mean`.
    """
    own = log_ratio(inputs)
    # Multiplied by the sign, "pushed too far" is the upper side for both signs of the advantage.
    sign = torch.where(inputs.advantages > 0, 1.0, -1.0)
    pushed = torch.minimum(sign * own, sign * own.clamp(-clip, clip)) * sign
    ratio = torch.exp(response_mean(pushed, inputs.loss_mask)).expand_as(inputs.logprobs)
    return PolicyLoss(-inputs.advantages * ratio, (pushed != own).detach())
