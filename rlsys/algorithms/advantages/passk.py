"""Advantages with pass@k as the reward of a group (arXiv:2508.10751)."""

from __future__ import annotations

import math

import torch

from rlsys.algorithms.advantages import AdvantageInputs, register
from rlsys.algorithms.grouped import group_size, group_sum
from rlsys.types import ROUNDING


@register("grpo_passk", min_group_size=2, group_size_option="k", raw_rewards=True)
def grpo_passk(inputs: AdvantageInputs, *, k: int = 4, correct_at: float = 1.0) -> torch.Tensor:
    """Return the analytic advantage of section 2.4: the mean over all draws of k of the group's n responses, [N].

    With m wrong responses, the mean pass@k is `R = 1 - C(m, k) / C(n, k)` and its deviation `s = sqrt(R (1 - R))`. A
    correct response gets `(1 - R) / s`, a wrong one `(1 - R - C(m - 1, k - 1) / C(n - 1, k - 1)) / s`; 0 where s is 0.

    Args:
        inputs: the step's rewards.
        k: responses per draw, fewer than the samples per prompt. A group with no more than k valid rewards has one
            possible draw and gets 0.
        correct_at: a response is correct when the reward that judges answers reaches this; the total if there is none.
    """
    judged = inputs.rewards if inputs.judged is None else inputs.judged
    correct = judged >= correct_at - ROUNDING  # a sum of weighted parts may lack its last digit
    sizes = group_size(inputs.rewards, inputs.groups).long().tolist()
    wrong = group_sum((~correct).double(), inputs.groups).long().tolist()
    values = [_analytic(n, m, min(k, n), hit) for n, m, hit in zip(sizes, wrong, correct.tolist(), strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def _analytic(n: int, m: int, k: int, correct: bool) -> float:
    mean = 1.0 - math.comb(m, k) / math.comb(n, k)  # R: the share of draws with a correct response
    if mean in (0.0, 1.0):
        return 0.0
    # The share of draws with this wrong response in which all others are wrong too.
    missed = 0.0 if correct else math.comb(m - 1, k - 1) / math.comb(n - 1, k - 1)
    return (1.0 - mean - missed) / math.sqrt(mean * (1.0 - mean))
