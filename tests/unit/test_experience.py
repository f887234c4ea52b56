"""From scored groups to what the learner trains on."""

from __future__ import annotations

import pytest
import torch

from rlsys.algorithms.advantages.grpo import grpo
from rlsys.errors import RlsysError
from rlsys.experience import make_experience
from rlsys.types import LossTotals

from .records import group, reward, summary

GROUPS = [group(0, [summary(4), summary(6)]), group(1, [summary(2), summary(8), summary(5)])]


def centered(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Reward minus its group's mean."""
    means = torch.stack([rewards[groups == group].mean() for group in groups])
    return (rewards - means).float()


def test_rows_by_hand() -> None:
    rewards = [[reward(1.0), reward(0.0)], [reward(2.0), reward(4.0), reward(6.0)]]
    experience = make_experience(GROUPS, rewards, ("ref 0", "ref 1"), centered, policy_version=7)
    rows = [(r.group, r.sample, r.advantage, r.num_tokens, r.num_response_tokens) for r in experience.rows]
    assert rows == [(0, 0, 0.5, 7, 4), (0, 1, -0.5, 9, 6), (1, 0, -2.0, 5, 2), (1, 1, 0.0, 11, 8), (1, 2, 2.0, 8, 5)]
    assert experience.trajectories == ("arrays of group 0", "arrays of group 1")
    assert experience.ref_logprobs == ("ref 0", "ref 1")
    assert experience.policy_version == 7
    assert experience.totals == LossTotals(num_tokens=25, num_trajectories=5)  # 4 + 6 + 2 + 8 + 5


def test_trajectories_without_a_reward_are_left_out_and_shift_no_mean() -> None:
    rewards = [[reward(None, "timeout"), reward(None, "error")], [reward(2.0), reward(None, "error"), reward(6.0)]]
    experience = make_experience(GROUPS, rewards, None, centered, policy_version=0)
    # The mean of group 1 is (2 + 6) / 2: a failed reward is not a reward of 0.
    assert [(row.group, row.sample, row.advantage) for row in experience.rows] == [(1, 0, -2.0), (1, 2, 2.0)]
    assert experience.trajectories == ("arrays of group 0", "arrays of group 1")  # indices of groups stay true
    assert experience.totals == LossTotals(num_tokens=7, num_trajectories=2)
    assert experience.ref_logprobs is None


def test_a_group_with_one_valid_reward_teaches_nothing() -> None:
    rewards = [[reward(1.0), reward(None, "error")], [reward(1.0), reward(0.0), reward(0.0)]]
    experience = make_experience(GROUPS, rewards, None, grpo, policy_version=0)
    assert experience.rows[0].advantage == 0.0
    assert experience.rows[1].advantage > 0.0


def test_no_valid_reward_at_all_names_the_first_failure() -> None:
    rewards = [
        [reward(None, "timeout", label="math", detail="no answer within 5 s"), reward(None, "error", detail="later")],
        [reward(None, "error")] * 3,
    ]
    with pytest.raises(RlsysError, match=r"no trajectory.*valid reward.*math: timeout: no answer within 5 s"):
        make_experience(GROUPS, rewards, None, centered, policy_version=0)


def test_a_function_that_applies_nowhere_is_named() -> None:
    rewards = [[reward(None, "not_applicable", label="math")] * 2, [reward(None, "not_applicable", label="math")] * 3]
    with pytest.raises(RlsysError, match=r"math: not_applicable: the function returned None"):
        make_experience(GROUPS, rewards, None, centered, policy_version=0)
