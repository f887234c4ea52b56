"""Corrections for data that another policy sampled: `f(inputs, *, options) -> weights [B, T]`, without gradient.

Engine and learner never agree to the last bit, and with several updates per step or asynchronous rollouts the policy
has changed since it sampled. A correction returns a factor for each trained token's policy loss: an importance weight,
or 0 to leave the token out. The factors of several corrections multiply, but only one may be an importance weight
(`weighs=True`, unless its option `weigh` is false), because the ratio must count once.

A correction that compares `old` with `behavior` registers with `compares_old=True`. With `train.old_logprobs=engine`
the two are the same, so it is refused.

The ratio to the policy before the step, which a loss clips, is not a correction: it belongs to `policy_losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from rlsys.algorithms.inputs import MAX_LOG_RATIO, LossInputs, response_mean
from rlsys.registry import Registry

Level = Literal["token", "sequence", "geometric"]
CorrectionFn = Callable[..., torch.Tensor]
registry: Registry[CorrectionFn] = Registry("correction", __name__)
register = registry.register


def ratio(inputs: LossInputs, level: Level) -> torch.Tensor:
    """Return the ratio of probabilities `old / behavior`, [B, T].

    Args:
        inputs: tensors [B, T].
        level: `token` is each token's own ratio; `sequence` is the product over the response, and `geometric` its
            geometric mean, at every token of the response.
    """
    assert inputs.behavior_logprobs is not None
    difference = torch.where(inputs.loss_mask, inputs.old_logprobs - inputs.behavior_logprobs, 0.0).detach()
    # In logarithms: a product over thousands of tokens would overflow or vanish. [B, 1] is then seen by every token.
    if level == "sequence":
        difference = difference.sum(dim=1, keepdim=True).expand_as(difference)
    if level == "geometric":
        difference = response_mean(difference, inputs.loss_mask).expand_as(difference)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
