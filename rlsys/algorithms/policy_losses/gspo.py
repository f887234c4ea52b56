"""Group sequence policy optimization (arXiv:2507.18071): one ratio per response, the geometric mean over tokens."""

from __future__ import annotations

import torch

from rlsys.algorithms.inputs import LossInputs, clipped_surrogate, log_ratio, response_mean
from rlsys.algorithms.policy_losses import PolicyLoss, register


@register("gspo")
def gspo(inputs: LossInputs, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> PolicyLoss:
    """Return the clipped surrogate of `s = exp(mean over tokens of (logprob - old_logprob))` (equations 5 to 7).

    Returns: [B, T] with the response's value at every token; use `aggregation=sequence_mean`.
    """
    ratio = torch.exp(response_mean(log_ratio(inputs), inputs.loss_mask)).expand_as(inputs.logprobs)
    return PolicyLoss(*clipped_surrogate(ratio, inputs.advantages, clip_low, clip_high))


@register("gspo_token")
def gspo_token(inputs: LossInputs, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> PolicyLoss:
    """Return gspo's loss with the gradient at each token, `s_t = sg[s] * p_t / sg[p_t]` (equation 13).

    The values are gspo's. The gradient is gspo's too where a response has one advantage; this form is meant for
    responses whose tokens have different ones.
    """
    # own - own.detach() is 0 with gradient: the value is the response's ratio, the gradient each token's.
    own = log_ratio(inputs)
    response = response_mean(own, inputs.loss_mask).detach()
    ratio = torch.exp(response + own - own.detach())
    return PolicyLoss(*clipped_surrogate(ratio, inputs.advantages, clip_low, clip_high))
