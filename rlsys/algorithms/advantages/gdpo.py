"""Group reward-decoupled normalisation (GDPO, arXiv:2601.05242)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.grouped import all_equal, group_size, group_sum


@register("gdpo", min_group_size=2, by_parts=True, raw_rewards=True)
def gdpo(inputs: AdvantageInputs, *, eps: float = 1e-4) -> torch.Tensor:
    """Normalise each reward function within the group, sum them by weight, and normalise that over the batch, [N].

    A part that does not apply to a trajectory (NaN) enters neither its sum nor its group's mean and standard deviation.

    Args:
        inputs: the step's rewards, by parts.
        eps: added to every standard deviation (unbiased, over n - 1); 1e-4 as in TRL.
    """
    assert inputs.parts is not None
    assert inputs.part_weights is not None
    # Normalised before they are summed, so that functions on different scales count as much as their weights say.
    total = torch.zeros_like(inputs.rewards)
    for values, weight in zip(inputs.parts.unbind(1), inputs.part_weights, strict=True):
        applies = ~values.isnan()
        total[applies] += weight * _normalised(values[applies], inputs.groups[applies], eps)
    # Equality is tested exactly: a rounding error divided by eps would become a signal.
    if len(total) < 2 or bool((total == total[0]).all()):
        return torch.zeros_like(total)
    return (total - total.mean()) / (total.std() + eps)


def _normalised(values: torch.Tensor, groups: torch.Tensor, eps: float) -> torch.Tensor:
    # Sizes count only the members that the function applies to.
    sizes = group_size(values, groups)
    centered = values - group_sum(values, groups) / sizes
    std = (group_sum(centered**2, groups) / (sizes - 1).clamp(min=1)).sqrt()
    return torch.where(all_equal(values, groups), 0.0, centered / (std + eps))
