"""REINFORCE++ (arXiv:2501.03262): normalised over the batch's tokens instead of the prompt's samples."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.advantages.grpo import centre


@register("reinforce_pp")
def reinforce_pp(inputs: AdvantageInputs, *, eps: float = 1e-8) -> torch.Tensor:
    """`(r - mean) / (std + eps)` over all tokens of the step, each carrying its response's reward, [N].

    The KL goes into the reward: `algorithm.kl.apply_to=reward`. The paper charges a token for the KL from it on; here
    it is that of the whole response at every token: the same gradient in expectation, with more variance.
    """
    return _normalised(inputs.rewards, inputs.lengths, eps)


@register("reinforce_pp_baseline", min_group_size=2)
def reinforce_pp_baseline(inputs: AdvantageInputs, *, eps: float = 1e-8) -> torch.Tensor:
    """The same after the group's mean is taken off (section 3.3); its KL goes into the loss, as k2. [N]."""
    return _normalised(centre(inputs), inputs.lengths, eps)


def _normalised(values: torch.Tensor, lengths: torch.Tensor, eps: float) -> torch.Tensor:
    """Zero mean and unit (biased) variance over tokens, [N]; 0 where all values are equal."""
    if not len(values) or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    weights = lengths.double() / max(int(lengths.sum()), 1)
    centered = values - (weights * values).sum()
    return centered / ((weights * centered**2).sum().sqrt() + eps)
