"""Advantage estimators: `f(inputs, *, options) -> advantages [N]`, one per trajectory, over the whole step.

Only trajectories with a valid reward are given, so a group may have fewer than G members. An estimator states what it
needs of the run at its registration; that is checked before Ray starts:

    min_group_size=2          its baseline is computed from the group's own rewards
    greedy=True               every prompt also gets a greedy response (`greedy_rewards`)
    group_size_option="k"     the option `k` must be less than the samples per prompt
    raw_rewards=True          it needs unchanged rewards; algorithm.kl.apply_to=reward is refused
    by_parts=True             it uses the reward functions' values one by one, not their total
    critic=True               it uses a critic's value of every token, and has the signature of `gae` instead

Where rewards come from, and which groups are trained at all, does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rlsys.registry import Registry


@dataclass(frozen=True)
class AdvantageInputs:
    """The rewards of a step's N trajectories, float64."""

    rewards: torch.Tensor  # [N], totals
    groups: torch.Tensor  # [N] int64, index of each one's prompt
    lengths: torch.Tensor  # [N] int64, response tokens
    parts: torch.Tensor | None = None  # [N, K], values of the K reward functions; NaN where one does not apply
    part_weights: torch.Tensor | None = None  # [K]
    judged: torch.Tensor | None = None  # [N], value that decides what is correct; NaN where none does; None: `rewards`
    greedy_rewards: torch.Tensor | None = None  # [N], reward of the greedy response to the same prompt


AdvantageFn = Callable[..., Any]
registry: Registry[AdvantageFn] = Registry("advantage estimator", __name__)
register = registry.register
