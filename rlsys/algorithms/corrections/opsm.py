"""Off-policy sequence masking (DeepSeek-V3.2, arXiv:2512.02556, section 3.1)."""

from __future__ import annotations

import torch

from rlsys.algorithms.corrections import LossInputs, register, response_mean


@register("opsm")
def opsm(inputs: LossInputs, *, threshold: float = 0.1) -> torch.Tensor:
    """0 for a response of negative advantage whose mean `behavior_logprob - logprob` exceeds `threshold`, else 1.

    All [B, T]: what the policy has already moved away from is not pushed further. The threshold's default is ours.
    """
    assert inputs.behavior_logprobs is not None
    moved = response_mean(inputs.behavior_logprobs - inputs.logprobs.detach(), inputs.loss_mask)
    return ((inputs.advantages >= 0) | (moved <= threshold)).to(inputs.logprobs.dtype)
