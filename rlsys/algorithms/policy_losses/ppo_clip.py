"""The clipped surrogate of PPO (arXiv:1707.06347) as GRPO uses it, with separate bounds (DAPO, arXiv:2503.14476)."""

from __future__ import annotations

import torch

from rlsys.algorithms.inputs import LossInputs, clipped_surrogate, log_ratio
from rlsys.algorithms.policy_losses import PolicyLoss, register
from rlsys.errors import ConfigError


def _check(clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None) -> None:
    if not 0 <= clip_low <= 1 or clip_high < 0:
        raise ConfigError(
            f"policy loss 'ppo_clip': clip_low={clip_low} must be from 0 to 1 and clip_high={clip_high} at least 0"
        )
    if dual_clip is not None and dual_clip <= 1.0 + clip_high:
        raise ConfigError(
            f"policy loss 'ppo_clip': dual_clip={dual_clip} must be above 1 + clip_high = {1.0 + clip_high:g}; a "
            "smaller one would replace the first clip"
        )


@register("ppo_clip", check=_check)
def ppo_clip(
    inputs: LossInputs, *, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None
) -> PolicyLoss:
    """Return `-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)`, `ratio = exp(logprob - old_logprob)`.

    All tensors are [B, T]. On policy the ratio is exactly 1 and the gradient is the policy gradient.

    Args:
        inputs: tensors [B, T].
        clip_low: distance of the lower bound from 1.
        clip_high: distance of the upper bound from 1; clip-higher is `clip_high > clip_low`.
        dual_clip: upper bound of the ratio where the advantage is negative and the other clip does nothing (dual-clip
            PPO, arXiv:1912.09729, which uses 3; TRL calls it `delta`). Must exceed `1 + clip_high`; null is none.
    """
    ratio = torch.exp(log_ratio(inputs))
    if dual_clip is None:
        return PolicyLoss(*clipped_surrogate(ratio, inputs.advantages, clip_low, clip_high))
    # For A > 0 the bound changes nothing, since clip_high is below it; for A < 0 it limits -ratio * A.
    bounded = ratio.clamp(max=dual_clip)
    per_token, clipped = clipped_surrogate(bounded, inputs.advantages, clip_low, clip_high)
    return PolicyLoss(per_token, clipped | ((ratio > dual_clip) & (inputs.advantages < 0)))
