"""Truncated importance sampling (TIS).

Yao et al., "Your efficient RL framework secretly brings you off-policy RL training", 2025.
"""

from __future__ import annotations

import torch

from rlsys.algorithms.corrections import Level, ratio, register
from rlsys.algorithms.inputs import LossInputs


@register("truncate", compares_old=True, weighs=True)
def truncate(
    inputs: LossInputs, *, level: Level = "token", high: float = 2.0, low: float | None = None
) -> torch.Tensor:
    """Return the weight `clip(old / behavior, low, high)`, [B, T].

    Args:
        inputs: tensors [B, T].
        level: the ratio of each `token`, the product over the `sequence`, or its `geometric` mean.
        high: upper bound of the weight.
        low: lower bound of the weight; null is none.
    """
    return ratio(inputs, level).clamp(min=low, max=high)
