"""Advantage estimators: `f(inputs, *, options) -> advantages [N]`, one a trajectory, over the whole step.

Only trajectories with a valid reward come in, so a group may have fewer than G members. What an estimator needs of the
run stands in its registration and is checked before Ray starts:

    min_group_size=2          its baseline is made of the group's own rewards
    greedy=True               a greedy response to every prompt (`greedy_rewards`)
    group_size_option="k"     the option `k` must be less than the samples of a prompt
    raw_rewards=True          rewards as they are: a KL in the reward would change what they mean, and is refused
    by_parts=True             it looks at the reward functions one by one, not at their total
    critic=True               values of every token: not this signature but that of `gae`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rlsys.registry import Registry


@dataclass(frozen=True)
class AdvantageInputs:
    """The N trajectories of a step. Rewards are float64."""

    rewards: torch.Tensor  # [N], totals
    groups: torch.Tensor  # [N] int64, index of the prompt that each was sampled from
    lengths: torch.Tensor  # [N] int64, response tokens
    parts: torch.Tensor | None = None  # [N, K], of each reward function; NaN where it does not apply
    part_weights: torch.Tensor | None = None  # [K]
    greedy_rewards: torch.Tensor | None = None  # [N], of the greedy response to the same prompt


AdvantageFn = Callable[..., Any]
registry: Registry[AdvantageFn] = Registry("advantage estimator", __name__)
register = registry.register
