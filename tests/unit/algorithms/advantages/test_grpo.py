"""Group-relative advantages."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.algorithms.advantages import AdvantageInputs
from rlsys.algorithms.advantages.grpo import grpo

EIGHTHS = st.integers(-64, 64).map(lambda n: n / 8)  # sums of these are exact in floating point


def advantages(rewards: list[float], groups: list[int], **options: float) -> list[float]:
    inputs = AdvantageInputs(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups), torch.ones(len(rewards)))
    return grpo(inputs, **options).tolist()


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    rewards = draw(st.lists(EIGHTHS, min_size=1, max_size=12))
    groups = draw(st.lists(st.integers(0, 3), min_size=len(rewards), max_size=len(rewards)))
    return rewards, groups


def test_two_groups_by_hand() -> None:
    # Group 0: 1 0 0 1, mean 1/2, variance 4 * (1/2)^2 / (4 - 1) = 1/3.  Group 1: 2 4, mean 3, variance (1 + 1) / 1 = 2.
    first, second = 0.5 / (math.sqrt(1 / 3) + 1e-4), 1 / (math.sqrt(2) + 1e-4)
    assert advantages([1, 0, 0, 1, 2, 4], [0, 0, 0, 0, 1, 1]) == pytest.approx(
        [first, -first, -first, first, -second, second], rel=1e-6
    )


def test_eps_is_added_to_the_standard_deviation() -> None:
    # 2 4: deviations -1 1, standard deviation sqrt(2).
    assert advantages([2, 4], [0, 0], eps=0.5) == pytest.approx([-1 / (math.sqrt(2) + 0.5), 1 / (math.sqrt(2) + 0.5)])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1 * 3, 1 / 3, -7.3, 1e-30, 1e30])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_are_exactly_zero(value: float, size: int) -> None:
    # The mean of three times 0.1 * 3 is not 0.1 * 3 after rounding: only an exact comparison gives an exact zero.
    assert advantages([value] * size + [1.0, 2.0], [0] * size + [1, 1])[:size] == [0.0] * size


def test_a_group_of_one_is_exactly_zero() -> None:
    assert advantages([5.0, 1.0, 2.0], [0, 1, 1])[0] == 0.0


def test_group_ids_without_members_change_nothing() -> None:
    # Every sample of groups 0, 2 and 3 was left out for want of a valid reward.
    assert advantages([1.0, 2.0, 4.0], [1, 1, 4]) == [*advantages([1.0, 2.0], [0, 0]), 0.0]


@given(batches())
def test_every_group_sums_to_zero_and_keeps_the_order_of_its_rewards(batch: tuple[list[float], list[int]]) -> None:
    rewards, groups = batch
    result = advantages(rewards, groups)
    for group in set(groups):
        members = [i for i in range(len(groups)) if groups[i] == group]
        assert sum(result[i] for i in members) == pytest.approx(0.0, abs=1e-5)
        for i in members:
            assert all(result[i] <= result[j] for j in members if rewards[i] < rewards[j])
