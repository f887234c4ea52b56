"""Policy losses: `f(inputs, *, options) -> PolicyLoss`, per token; masking and averaging happen elsewhere, once.

Losses whose ratio belongs to a whole response (gspo, gmpo) give every token of it the same value, so that
`aggregation=sequence_mean` is the mean over responses that their papers write.

A loss that treats some tokens of an update apart, chosen among all of them (clip_cov, kl_cov), registers with
`selects=f`: `f(tokens: UpdateTokens, *, options) -> [n] bool`, which gets those of the loss's options that it names. It
is called once an update with the tokens of all ranks, so the choice does not depend on how the update was split.
One that only holds back what has moved in the step already registers with `min_updates=2`, and is refused with fewer.
Options that must fit together are looked at by `check=f`: `f(**options)` raises ConfigError before Ray starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlsys.algorithms.inputs import LossInputs, clipped_surrogate, log_ratio, response_mean
from rlsys.registry import Registry

__all__ = ["LossInputs", "PolicyLoss", "clipped_surrogate", "log_ratio", "register", "registry", "response_mean"]


@dataclass(frozen=True)
class PolicyLoss:
    """`per_token` [B, T] float32 to be minimised; `clipped` [B, T] bool marks tokens whose gradient the clip cut."""

    per_token: torch.Tensor
    clipped: torch.Tensor


PolicyLossFn = Callable[..., PolicyLoss]
registry: Registry[PolicyLossFn] = Registry("policy loss", __name__)
register = registry.register
