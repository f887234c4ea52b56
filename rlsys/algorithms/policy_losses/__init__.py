"""Policy losses: `f(inputs, *, options) -> PolicyLoss`, per token; masking and averaging happen in `Objective`.

Losses whose ratio belongs to a whole response (gspo, gmpo) give all its tokens the same value, so that
`aggregation=sequence_mean` is the mean over responses of their papers.

Facts that a loss may state at its registration:
    selects=f       it treats some tokens of an update differently (clip_cov, kl_cov). `f(tokens: UpdateTokens, *,
                    options) -> [n] bool` chooses them and gets those of the loss's options that it names. It is called
                    once per update with the tokens of all ranks, so the choice does not depend on the split.
    min_updates=2   it penalises drift since the start of the step and does nothing with one update per step, so fewer
                    are refused.
    check=f         `f(**options)` raises ConfigError, before Ray starts, for options that do not fit together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlsys.registry import Registry


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of each token."""

    per_token: torch.Tensor  # [B, T] float32, to be minimised
    clipped: torch.Tensor  # [B, T] bool, tokens whose gradient a clip cut


PolicyLossFn = Callable[..., PolicyLoss]
registry: Registry[PolicyLossFn] = Registry("policy loss", __name__)
register = registry.register
