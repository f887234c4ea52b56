"""ReMax (arXiv:2310.10505)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register


@register("remax", greedy=True)
def remax(inputs: AdvantageInputs) -> torch.Tensor:
    """Return reward minus the reward of the greedy response to the same prompt, [N]."""
    assert inputs.greedy_rewards is not None
    return inputs.rewards - inputs.greedy_rewards
