"""The decoupled proximal policy (Hilton et al., arXiv:2110.00641; AReaL, arXiv:2505.24298)."""

from __future__ import annotations

import torch

from rlsys.algorithms.corrections import ratio, register
from rlsys.algorithms.inputs import LossInputs


@register("decoupled", compares_old=True, weighs=True)
def decoupled(inputs: LossInputs, *, cap: float | None = None) -> torch.Tensor:
    """Return the weight `old / behavior` of each token, [B, T].

    The policy loss's clip keeps the policy near `old`; this weight corrects for the distance from `old` to the policy
    that sampled.

    Args:
        inputs: tensors [B, T].
        cap: tokens with a larger weight are left out (5 in AReaL's recipes); null keeps all.
    """
    weights = ratio(inputs, "token")
    return weights if cap is None else torch.where(weights > cap, 0.0, weights)
