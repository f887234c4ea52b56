"""Policy losses: `f(inputs, *, options) -> PolicyLoss`, per token; masking and averaging happen elsewhere, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlsys.registry import Registry


@dataclass(frozen=True)
class LossInputs:
    """Token-aligned tensors of one microbatch, all [B, T]; float32 but the mask, which is bool."""

    logprobs: torch.Tensor  # under the policy being trained; carries the gradient
    old_logprobs: torch.Tensor  # under the policy before this step's first update
    advantages: torch.Tensor
    loss_mask: torch.Tensor
    ref_logprobs: torch.Tensor | None = None


@dataclass(frozen=True)
class PolicyLoss:
    """`per_token` [B, T] float32 to be minimised; `clipped` [B, T] bool marks tokens whose gradient the clip cut."""

    per_token: torch.Tensor
    clipped: torch.Tensor


PolicyLossFn = Callable[..., PolicyLoss]
registry: Registry[PolicyLossFn] = Registry("policy loss", __name__)
register = registry.register
