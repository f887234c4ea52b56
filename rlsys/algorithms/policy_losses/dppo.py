"""Divergence proximal policy optimization (arXiv:2602.04879): a token is masked when the policy has moved too far in
the direction that its advantage pushes, measured by a divergence instead of the ratio.

The divergences are the paper's binary ones: the sampled token against all others. Its anchor is the distribution that
sampled (section 5.2): `train.old_logprobs=engine`, as the presets say.
"""

from __future__ import annotations

import torch

from rlsys.algorithms.policy_losses import LossInputs, PolicyLoss, log_ratio, register


@register("dppo_tv")
def dppo_tv(inputs: LossInputs, *, threshold: float = 0.15, ratio_max: float = 20.0) -> PolicyLoss:
    """Total variation `|p - p_old|` of the sampled token, [B, T]; at most `threshold`."""
    old = torch.where(inputs.loss_mask, inputs.old_logprobs, 0.0)
    moved = (old + log_ratio(inputs).detach()).exp() - old.exp()
    return _masked(inputs, moved.abs() > threshold, ratio_max)


@register("dppo_kl")
def dppo_kl(inputs: LossInputs, *, threshold: float = 0.05, ratio_max: float = 20.0) -> PolicyLoss:
    """`KL(p_old || p)` between the two-way distributions (sampled token, any other), [B, T]; at most `threshold`."""
    difference = log_ratio(inputs).detach()
    old = torch.where(inputs.loss_mask, inputs.old_logprobs, 0.0).exp()
    others_old, others = (1.0 - old).clamp(min=1e-8), (1.0 - old * difference.exp()).clamp(min=1e-8)
    divergence = -old * difference + others_old * torch.log(others_old / others)
    return _masked(inputs, divergence > threshold, ratio_max)


def _masked(inputs: LossInputs, far: torch.Tensor, ratio_max: float) -> PolicyLoss:
    """`-sg[min(ratio, ratio_max)] * A * logprob`, and nothing where the policy is far and is pushed further."""
    difference = log_ratio(inputs).detach()
    cut = far & torch.where(inputs.advantages > 0, difference > 0, difference < 0)
    weight = torch.where(cut, 0.0, difference.exp().clamp(max=ratio_max))
    return PolicyLoss(-weight * inputs.advantages * inputs.logprobs, cut)
