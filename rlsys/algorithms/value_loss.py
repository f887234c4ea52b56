"""The critic's loss (PPO, arXiv:1707.06347; the clipped form of its reference implementation)."""

from __future__ import annotations

import torch


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `max((v - R)^2, (clip(v, old - c, old + c) - R)^2) / 2` and a mask of clipped tokens, [B, T] each.

    Args:
        values: v, values of the critic being trained, [B, T] with gradient.
        old_values: values of the critic before the step, [B, T].
        returns: R, [B, T].
        clip: c, how far a value may move in one step before its gradient ends; None is the plain squared error.
    """
    plain = (values - returns) ** 2
    if clip is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    # As in the policy loss, the maximum is pessimistic: clipping never makes an error look smaller.
    moved = (old_values + (values - old_values).clamp(-clip, clip) - returns) ** 2
    return 0.5 * torch.maximum(plain, moved), (moved > plain).detach()
