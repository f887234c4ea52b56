"""Off-policy sequence masking (DeepSeek-V3.2, arXiv:2512.02556, section 3.1)."""

from __future__ import annotations

import torch

from rlsys.algorithms.corrections import register
from rlsys.algorithms.inputs import LossInputs, response_mean


@register("opsm")
def opsm(inputs: LossInputs, *, threshold: float = 0.1) -> torch.Tensor:
    """Return 0 for bad responses that the policy has already moved away from, else 1; [B, T].

    Bad is a negative advantage; moved away is a mean of `behavior_logprob - logprob` over the response above
    `threshold`. The paper gives no value for it; the default is our choice.
    """
    assert inputs.behavior_logprobs is not None
    # [B, 1]: one decision per response, seen by all its tokens.
    moved = response_mean(inputs.behavior_logprobs - inputs.logprobs.detach(), inputs.loss_mask)
    return ((inputs.advantages >= 0) | (moved <= threshold)).to(inputs.logprobs.dtype)
