"""Corrections for data that another policy sampled: `f(inputs, *, options) -> weights [B, T]`, without gradient.

Engine and learner never agree to the last bit, and with several updates a step or asynchronous rollouts the policy has
moved on. A correction says what each trained token's policy loss is multiplied by: an importance weight, or 0 to leave
it out. Several multiply, but only one may weigh (`weighs=True`, unless its option `weigh` is false): the ratio counts
once.

One that compares `old` with `behavior` registers with `compares_old=True`; under `train.old_logprobs=engine` that is
1 everywhere, and refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from rlsys.algorithms.inputs import MAX_LOG_RATIO, LossInputs, response_mean
from rlsys.registry import Registry

__all__ = ["Level", "LossInputs", "ratio", "register", "registry", "response_mean"]

Level = Literal["token", "sequence", "geometric"]
CorrectionFn = Callable[..., torch.Tensor]
registry: Registry[CorrectionFn] = Registry("correction", __name__)
register = registry.register


def ratio(inputs: LossInputs, level: Level) -> torch.Tensor:
    """`old / behavior` probabilities, [B, T]: of each token, or the response's product or geometric mean at each."""
    assert inputs.behavior_logprobs is not None
    difference = torch.where(inputs.loss_mask, inputs.old_logprobs - inputs.behavior_logprobs, 0.0).detach()
    if level == "sequence":
        difference = difference.sum(dim=1, keepdim=True).expand_as(difference)
    if level == "geometric":
        difference = response_mean(difference, inputs.loss_mask).expand_as(difference)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
