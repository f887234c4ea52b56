"""Group-relative advantages (DeepSeekMath, arXiv:2402.03300, section 4.1)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import register


@register("grpo", min_group_size=2)
def grpo(rewards: torch.Tensor, groups: torch.Tensor, *, eps: float = 1e-4) -> torch.Tensor:
    """`(r - mean) / (std + eps)` within the group; 0 where a group's rewards are all equal or it has one member.

    Args:
        rewards: [N] float.
        groups: [N] int64, group index of each trajectory.
        eps: added to the standard deviation (the unbiased one, over n - 1).

    Returns: [N] float32.
    """
    rewards = rewards.double()
    num_groups = int(groups.max()) + 1 if groups.numel() else 0
    zeros = rewards.new_zeros(num_groups)
    counts = zeros.index_add(0, groups, torch.ones_like(rewards))
    means = zeros.index_add(0, groups, rewards) / counts.clamp(min=1)
    centered = rewards - means[groups]
    variances = zeros.index_add(0, groups, centered**2) / (counts - 1).clamp(min=1)
    advantages = centered / (variances.sqrt()[groups] + eps)
    # Equality, not a small variance, decides: rounding in the mean must not turn equal rewards into a signal.
    lowest = zeros.scatter_reduce(0, groups, rewards, "amin", include_self=False)
    highest = zeros.scatter_reduce(0, groups, rewards, "amax", include_self=False)
    return torch.where((lowest == highest)[groups], 0.0, advantages).float()
