"""The decoupled proximal policy (Hilton et al., arXiv:2110.00641; AReaL, arXiv:2505.24298)."""

from __future__ import annotations

import torch

from rlsys.algorithms.corrections import LossInputs, ratio, register


@register("decoupled", compares_old=True, weighs=True)
def decoupled(inputs: LossInputs, *, cap: float | None = None) -> torch.Tensor:
    """`old / behavior` of each token, [B, T]: the clip keeps the policy near `old`, this weight allows for the rest.

    Args:
        cap: tokens with a larger weight are left out (5 in AReaL's recipes); null keeps all.
    """
    weights = ratio(inputs, "token")
    return weights if cap is None else torch.where(weights > cap, 0.0, weights)
