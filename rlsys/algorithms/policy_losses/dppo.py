"""Divergence proximal policy optimization (arXiv:2602.04879).

A token is masked when the policy has moved too far in the direction that its advantage pushes, measured by a divergence
instead of the ratio. The divergences are the paper's binary ones: the sampled token against all others. The anchor is
the distribution that sampled (section 5.2): set `train.old_logprobs=engine`, as the presets do.
"""

from __future__ import annotations

import torch

from rlsys.algorithms.inputs import LossInputs, log_ratio
from rlsys.algorithms.policy_losses import PolicyLoss, register


@register("dppo_tv")
def dppo_tv(inputs: LossInputs, *, threshold: float = 0.15, ratio_max: float = 20.0) -> PolicyLoss:
    """Return the policy gradient where `|p - p_old|` of the sampled token is at most `threshold`, [B, T]."""
    old = torch.where(inputs.loss_mask, inputs.old_logprobs, 0.0)
    # Not `logprobs` themselves: log_ratio is bounded, and 0 outside the mask.
    moved = (old + log_ratio(inputs).detach()).exp() - old.exp()
    return _masked(inputs, moved.abs() > threshold, ratio_max)


@register("dppo_kl")
def dppo_kl(inputs: LossInputs, *, threshold: float = 0.05, ratio_max: float = 20.0) -> PolicyLoss:
    """Return the policy gradient where `KL(p_old || p)` is at most `threshold`, [B, T].

    The KL is that of the two-way distributions (sampled token, any other token).
    """
    difference = log_ratio(inputs).detach()
    old = torch.where(inputs.loss_mask, inputs.old_logprobs, 0.0).exp()
    # A probability may round to 1; the logarithms of the others' shares must stay finite.
    others_old, others = (1.0 - old).clamp(min=1e-8), (1.0 - old * difference.exp()).clamp(min=1e-8)
    # KL of (p, 1 - p): old * ln(old / p) + (1 - old) * ln((1 - old) / (1 - p)).
    divergence = -old * difference + others_old * torch.log(others_old / others)
    return _masked(inputs, divergence > threshold, ratio_max)


def _masked(inputs: LossInputs, far: torch.Tensor, ratio_max: float) -> PolicyLoss:
    """Return `-sg[min(ratio, ratio_max)] * A * logprob`, and 0 where the policy is far and would be pushed further."""
    difference = log_ratio(inputs).detach()
    # Where the advantage pushes the policy back towards old, it may go on.
    cut = far & torch.where(inputs.advantages > 0, difference > 0, difference < 0)
    weight = torch.where(cut, 0.0, difference.exp().clamp(max=ratio_max))
    return PolicyLoss(-weight * inputs.advantages * inputs.logprobs, cut)
