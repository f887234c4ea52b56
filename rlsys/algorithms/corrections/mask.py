"""Masked importance sampling (MIS), and with both bounds IcePop (arXiv:2510.18855)."""

from __future__ import annotations

import torch

from rlsys.algorithms.corrections import Level, LossInputs, ratio, register


@register("mask", compares_old=True, weighs=True)
def mask(
    inputs: LossInputs, *, level: Level = "token", high: float = 5.0, low: float | None = None, weigh: bool = True
) -> torch.Tensor:
    """`old / behavior` (or, without `weigh`, 1) where it lies in [low, high], else 0; [B, T].

    Args:
        level: whose ratio: each `token`'s, the `sequence`'s product, or its `geometric` mean.
        high, low: bounds; null is none below. IcePop is `low=0.5`.
        weigh: false only decides: to leave out by one level what another correction weighs.
    """
    weights = ratio(inputs, level)
    outside = weights > high
    if low is not None:
        outside |= weights < low
    return torch.where(outside, 0.0, weights if weigh else 1.0)
