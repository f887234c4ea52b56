"""Masked importance sampling (MIS), and with both bounds IcePop (arXiv:2510.18855)."""

from __future__ import annotations

import torch

from rlsys.algorithms.corrections import Level, ratio, register
from rlsys.algorithms.inputs import LossInputs


@register("mask", compares_old=True, weighs=True)
def mask(
    inputs: LossInputs, *, level: Level = "token", high: float = 5.0, low: float | None = None, weigh: bool = True
) -> torch.Tensor:
    """Return the ratio `old / behavior` where it is within [low, high], else 0; [B, T].

    Args:
        inputs: tensors [B, T].
        level: the ratio of each `token`, the product over the `sequence`, or its `geometric` mean.
        high: upper bound.
        low: lower bound; null is none. IcePop is `low=0.5`.
        weigh: false returns 1 in place of the ratio: tokens are left out here and weighted by another correction.
    """
    weights = ratio(inputs, level)
    outside = weights > high
    if low is not None:
        outside |= weights < low
    return torch.where(outside, 0.0, weights if weigh else 1.0)
