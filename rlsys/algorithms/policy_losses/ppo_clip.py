"""The clipped surrogate of PPO (arXiv:1707.06347) as GRPO uses it, with separate bounds (DAPO, arXiv:2503.14476)."""

from __future__ import annotations

import torch

from rlsys.algorithms.policy_losses import LossInputs, PolicyLoss, register


@register("ppo_clip")
def ppo_clip(inputs: LossInputs, *, clip_low: float = 0.2, clip_high: float = 0.2) -> PolicyLoss:
    """`-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)` with `ratio = exp(logprob - old_logprob)`.

    All tensors [B, T]. On policy the ratio is exactly 1 and the gradient is the policy gradient's.
    """
    advantages = inputs.advantages
    # Past e^20 the clip has decided long ago; the bound keeps inf * 0 out of the masked positions.
    ratio = torch.exp((inputs.logprobs - inputs.old_logprobs).clamp(-20.0, 20.0))
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    return PolicyLoss(per_token=-torch.minimum(unclipped, clipped), clipped=(clipped < unclipped).detach())
