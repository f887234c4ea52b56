"""REINFORCE++ (arXiv:2501.03262): normalised over the batch's tokens instead of the prompt's samples."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.advantages.grpo import centre


@register("reinforce_pp")
def reinforce_pp(inputs: AdvantageInputs, *, eps: float = 1e-8) -> torch.Tensor:
    """Return `(r - mean) / (std + eps)` over all tokens of the step, each carrying its response's reward, [N].

    The KL belongs in the reward: `algorithm.kl.apply_to=reward`. The paper subtracts at each token the KL from that
    token on; here every token gets the KL of the whole response. The gradient is the same in expectation, with more
    variance.
    """
    return _normalised(inputs.rewards, inputs.lengths, eps)


@register("reinforce_pp_baseline", min_group_size=2)
def reinforce_pp_baseline(inputs: AdvantageInputs, *, eps: float = 1e-8) -> torch.Tensor:
    """Return the same after subtracting the group's mean (section 3.3), [N]; its KL belongs in the loss, as k2."""
    return _normalised(centre(inputs), inputs.lengths, eps)


def _normalised(values: torch.Tensor, lengths: torch.Tensor, eps: float) -> torch.Tensor:
    """Bring values to zero mean and unit (biased) variance over tokens, [N]; 0 where all values are equal."""
    if not len(values) or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    # Every token carries its response's value, so responses weigh by their lengths; [N]
    weights = lengths.double() / max(int(lengths.sum()), 1)
    centered = values - (weights * values).sum()
    return centered / ((weights * centered**2).sum().sqrt() + eps)
