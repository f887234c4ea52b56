"""Truncated importance sampling (TIS; Yao et al., "Your efficient RL framework secretly brings you off-policy RL
training", 2025)."""

from __future__ import annotations

import torch

from rlsys.algorithms.corrections import Level, LossInputs, ratio, register


@register("truncate", compares_old=True, weighs=True)
def truncate(
    inputs: LossInputs, *, level: Level = "token", high: float = 2.0, low: float | None = None
) -> torch.Tensor:
    """`clip(old / behavior, low, high)`, [B, T].

    Args:
        level: whose ratio: each `token`'s, the `sequence`'s product, or its `geometric` mean.
        high, low: bounds of the weight; null is none below.
    """
    return ratio(inputs, level).clamp(min=low, max=high)
