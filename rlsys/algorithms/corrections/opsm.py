"""Off-policy sequence masking (DeepSeek-V3.2, arXiv:2512.02556, section 3.1)."""

from __future__ import annotations

import torch

from rlsys.algorithms.corrections import CorrectionInputs, register


@register("opsm")
def opsm(inputs: CorrectionInputs, *, threshold: float = 0.1) -> torch.Tensor:
    """0 for a response of negative advantage whose mean `behavior_logprob - logprob` exceeds `threshold`, else 1.

    All [B, T]: what the policy has already moved away from is not pushed further.
    """
    moved = torch.where(inputs.loss_mask, inputs.behavior_logprobs - inputs.logprobs, 0.0)
    mean = moved.sum(dim=1, keepdim=True) / inputs.loss_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return ((inputs.advantages >= 0) | (mean <= threshold)).to(inputs.logprobs.dtype)
