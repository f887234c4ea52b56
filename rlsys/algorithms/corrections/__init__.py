"""Corrections for data that another policy sampled: `f(inputs, *, options) -> weights [B, T]`, without gradient.

Engine and learner never agree to the last bit, and with several updates a step or asynchronous rollouts the policy has
moved on. A correction says what each trained token's loss is multiplied by: an importance weight, or 0 to leave it out.
Several multiply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from rlsys.registry import Registry

MAX_LOG_RATIO = 80.0
"""Beyond it exp() would overflow float32; every bound has decided long before."""
Level = Literal["token", "sequence", "geometric"]


@dataclass(frozen=True)
class CorrectionInputs:
    """Token-aligned tensors of one microbatch, all [B, T]; float32 but the mask, which is bool."""

    logprobs: torch.Tensor  # under the policy now, detached
    old_logprobs: torch.Tensor  # under the policy before this step's first update
    behavior_logprobs: torch.Tensor  # of the engine that sampled
    advantages: torch.Tensor
    loss_mask: torch.Tensor


@dataclass(frozen=True)
class WeightSums:
    """Sums over trained tokens that add up over microbatches and ranks; `largest` is a maximum."""

    num_tokens: float
    total: float
    squares: float
    zeros: float
    largest: float

    @property
    def effective_sample_fraction(self) -> float:
        """`(sum w)^2 / (n * sum w^2)`: 1 when all weights are equal, 1 / n when one token has it all."""
        return self.total**2 / max(self.num_tokens * self.squares, 1e-30)


CorrectionFn = Callable[..., torch.Tensor]
registry: Registry[CorrectionFn] = Registry("correction", __name__)
register = registry.register


def ratio(inputs: CorrectionInputs, level: Level) -> torch.Tensor:
    """`old / behavior` probabilities, [B, T]: of each token, or the response's product or geometric mean at each."""
    difference = torch.where(inputs.loss_mask, inputs.old_logprobs - inputs.behavior_logprobs, 0.0)
    if level != "token":
        total = difference.sum(dim=1, keepdim=True)
        if level == "geometric":
            total = total / inputs.loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
        difference = total.expand_as(difference)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def weight_sums(weights: torch.Tensor, loss_mask: torch.Tensor) -> WeightSums:
    """Statistics of [B, T] weights over the trained tokens."""
    trained = weights[loss_mask].double()
    if not trained.numel():
        return WeightSums(0.0, 0.0, 0.0, 0.0, 0.0)
    return WeightSums(
        num_tokens=float(trained.numel()),
        total=float(trained.sum()),
        squares=float((trained**2).sum()),
        zeros=float((trained == 0).sum()),
        largest=float(trained.max()),
    )
