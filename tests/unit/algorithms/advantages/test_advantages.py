"""Every advantage estimator against numbers worked by hand (relative tolerance 1e-6), and what all have in common."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.algorithms.advantages import AdvantageInputs, registry
from rlsys.errors import RlsysError

NAMES = [name for name in registry.names() if not registry.fact(name, "critic", False)]
MEAN_BASELINED = ["grpo", "dr_grpo", "rloo", "gpg", "opo", "gdpo", "reinforce_pp", "reinforce_pp_baseline"]
ALL = pytest.mark.parametrize("name", NAMES)
EIGHTHS = st.integers(-64, 64).map(lambda n: n / 8)  # sums of these are exact in floating point


def advantages(
    name: str,
    rewards: list[float],
    groups: list[int],
    lengths: list[int] | None = None,
    parts: list[list[float]] | None = None,
    part_weights: list[float] | None = None,
    greedy: list[float] | None = None,
    **options: Any,
) -> list[float]:
    def column(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    if name == "maxrl":  # the one that takes no negative reward
        rewards = [abs(reward) for reward in rewards]
    inputs = AdvantageInputs(
        rewards=column(rewards),
        groups=torch.tensor(groups, dtype=torch.int64),
        lengths=torch.tensor(lengths or [2] * len(rewards)),
        parts=column(parts if parts is not None else [[reward] for reward in rewards]).reshape(
            len(rewards), len(part_weights or [1])
        ),
        part_weights=column(part_weights or [1.0]),
        greedy_rewards=column(greedy or [0.5] * len(rewards)),
    )
    result = registry.bind(name, options)(inputs)
    assert result.shape == (len(rewards),)
    return result.tolist()


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[float], list[int], list[int]]:
    rewards = draw(st.lists(EIGHTHS, min_size=1, max_size=12))
    groups = draw(st.lists(st.integers(0, 3), min_size=len(rewards), max_size=len(rewards)))
    return rewards, groups, draw(st.lists(st.integers(1, 9), min_size=len(rewards), max_size=len(rewards)))


def test_grpo_s_three_scales_by_hand() -> None:
    # Group 0: 1 0, deviation sqrt(1/2).  Group 1: 2 4, deviation sqrt(2).  All four: mean 7/4, squares 35/4 / 3.
    rewards, groups, batch = [1, 0, 2, 4], [0, 0, 1, 1], math.sqrt(35 / 12)
    assert advantages("grpo", rewards, groups, eps=0.0) == pytest.approx(
        [0.5 / math.sqrt(0.5), -0.5 / math.sqrt(0.5), -1 / math.sqrt(2), 1 / math.sqrt(2)]
    )
    assert advantages("grpo", rewards, groups, scale="batch", eps=0.0) == pytest.approx(
        [0.5 / batch, -0.5 / batch, -1 / batch, 1 / batch]
    )
    assert advantages("grpo", rewards, groups, scale="none") == [0.5, -0.5, -1, 1]


def test_dr_grpo_by_hand() -> None:
    assert advantages("dr_grpo", [1, 0, 0, 3], [0, 0, 0, 1]) == pytest.approx([2 / 3, -1 / 3, -1 / 3, 0])


def test_rloo_by_hand() -> None:
    # 3 - (0 + 1) / 2, 0 - (3 + 1) / 2, 1 - (3 + 0) / 2
    assert advantages("rloo", [3, 0, 1], [0, 0, 0]) == pytest.approx([2.5, -2.0, -0.5])


def test_opo_by_hand() -> None:
    # Lengths 1 and 3: baseline (1 * 1 + 3 * 0) / 4
    assert advantages("opo", [1, 0], [0, 0], lengths=[1, 3]) == pytest.approx([0.75, -0.25])


def test_gpg_by_hand() -> None:
    # Two of four trajectories are in a group that teaches nothing: twice the others' weight.
    assert advantages("gpg", [1, 0, 7, 7], [0, 0, 1, 1]) == pytest.approx([1.0, -1.0, 0.0, 0.0])


def test_maxrl_by_hand() -> None:
    # One of four correct: (1 - 1/4) / (1/4), (0 - 1/4) / (1/4)
    assert advantages("maxrl", [1, 0, 0, 0], [0] * 4, eps=0.0) == pytest.approx([3, -1, -1, -1])
    assert advantages("maxrl", [0, 0], [0, 0]) == [0, 0]


def test_maxrl_refuses_negative_rewards() -> None:
    inputs = AdvantageInputs(torch.tensor([0.5, -0.5]), torch.tensor([0, 0]), torch.tensor([1, 1]))
    with pytest.raises(RlsysError, match=r"'maxrl'.*a reward is -0.5"):
        registry.get("maxrl")(inputs)


def test_reinforce_pp_weighs_tokens() -> None:
    # Rewards 1 and 0 on 1 and 3 tokens: mean 1/4, variance (1 * 9/16 + 3 * 1/16) / 4 = 3/16.
    deviation = math.sqrt(3 / 16)
    assert advantages("reinforce_pp", [1, 0], [0, 1], lengths=[1, 3]) == pytest.approx(
        [0.75 / deviation, -0.25 / deviation]
    )


def test_reinforce_pp_baseline_by_hand() -> None:
    # After the group means: 1/2 -1/2 on two tokens each, 0 (alone) on four: mean 0, variance 4 * 1/4 / 8.
    deviation = math.sqrt(1 / 8)
    assert advantages("reinforce_pp_baseline", [1, 0, 9], [0, 0, 1], lengths=[2, 2, 4]) == pytest.approx(
        [0.5 / deviation, -0.5 / deviation, 0]
    )


def test_remax_by_hand() -> None:
    assert advantages("remax", [1, 0, 0.5], [0, 0, 1], greedy=[1, 1, 0]) == [0, -1, 0.5]


def test_gdpo_by_hand() -> None:
    # Part 1: 1 0 -> +-1/sqrt(2); part 2: 0 10 -> -+1/sqrt(2). Weights 2 and 1: +-1/sqrt(2), then over the batch.
    parts = [[1.0, 0.0], [0.0, 10.0]]
    expected = 1 / math.sqrt(2)
    found = advantages("gdpo", [2, 10], [0, 0], parts=parts, part_weights=[2.0, 1.0], eps=0.0)
    assert found == pytest.approx([expected, -expected])


def test_gdpo_leaves_out_what_does_not_apply() -> None:
    nan = math.nan
    # Part 2 applies to the last two alone: their own mean and deviation.
    parts = [[1.0, nan], [0.0, nan], [0.0, 5.0], [1.0, 3.0]]
    found = advantages("gdpo", [1, 0, 5, 4], [0, 0, 1, 1], parts=parts, part_weights=[1.0, 1.0], eps=0.0)
    # Sums: +, -, -+ = 0, +- = 0 with 1/sqrt(2) each; mean 0, deviation sqrt(1/3).
    size = 1 / math.sqrt(2) / math.sqrt(1 / 3)
    assert found == pytest.approx([size, -size, 0, 0], abs=1e-12)


def test_passk_by_hand() -> None:
    # n = 4, k = 2, two wrong: R = 1 - C(2,2)/C(4,2) = 5/6, s = sqrt(5)/6.
    # Correct: (1/6) / s = 1/sqrt(5). Wrong: (1/6 - C(1,1)/C(3,1)) / s = -1/sqrt(5).
    found = advantages("grpo_passk", [1, 1, 0, 0], [0] * 4, k=2)
    assert found == pytest.approx([1 / math.sqrt(5)] * 2 + [-1 / math.sqrt(5)] * 2)


def test_pass_at_1_is_grpo_with_the_biased_deviation() -> None:
    found = advantages("grpo_passk", [1, 0, 0, 0], [0] * 4, k=1)
    assert found == pytest.approx([0.75 / math.sqrt(3 / 16)] + [-0.25 / math.sqrt(3 / 16)] * 3)


def test_passk_counts_what_the_judge_calls_correct() -> None:
    judge, totals = torch.tensor([1.0, 0.0, 0.6 + 0.3 + 0.1, math.nan]), torch.tensor([1.5, 1.5, 1.0, 1.0])
    inputs = AdvantageInputs(totals, torch.zeros(4, dtype=torch.int64), torch.ones(4), judged=judge)
    found = registry.component({"name": "grpo_passk", "k": 2})(inputs).tolist()
    assert found == pytest.approx(advantages("grpo_passk", [1, 0, 1, 0], [0] * 4, k=2))


def test_passk_is_the_average_over_all_draws() -> None:
    """Against the definition: every subset of k, scored by its best, normalised over all subsets, given to members."""
    import itertools

    correct, k = [True, False, False, True, False], 3
    draws = list(itertools.combinations(range(5), k))
    scores = torch.tensor([float(any(correct[i] for i in draw)) for draw in draws], dtype=torch.float64)
    normalised = (scores - scores.mean()) / scores.std(correction=0)
    expected = [
        float(torch.stack([value for draw, value in zip(draws, normalised, strict=True) if i in draw]).mean())
        for i in range(5)
    ]
    assert advantages("grpo_passk", [float(c) for c in correct], [0] * 5, k=k) == pytest.approx(expected)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "remax"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1 * 3, 1 / 3, 1e-30, 1e30])
def test_equal_rewards_are_exactly_zero(name: str, value: float) -> None:
    # The mean of three times 0.1 * 3 is not 0.1 * 3 after rounding: only an exact comparison gives an exact zero.
    assert advantages(name, [value] * 3, [0] * 3, lengths=[1, 2, 5], **({"k": 2} if "passk" in name else {})) == [0] * 3


@ALL
@given(batch=batches(), data=st.data())
@settings(max_examples=25)
def test_order_does_not_matter(name: str, batch: tuple[list[float], list[int], list[int]], data: st.DataObject) -> None:
    rewards, groups, lengths = batch
    expected = advantages(name, rewards, groups, lengths)
    assert all(map(math.isfinite, expected))
    order = data.draw(st.permutations(range(len(rewards))))
    found = advantages(name, *([column[i] for i in order] for column in (rewards, groups, lengths)))
    assert found == pytest.approx([expected[i] for i in order], abs=1e-6)


@pytest.mark.parametrize("name", MEAN_BASELINED)
@given(batch=batches(), shift=st.integers(-1000, 1000))
@settings(max_examples=25)
def test_a_constant_added_to_every_reward_changes_nothing(
    name: str, batch: tuple[list[float], list[int], list[int]], shift: int
) -> None:
    rewards, groups, lengths = batch
    shifted = advantages(name, [reward + shift for reward in rewards], groups, lengths)
    assert shifted == pytest.approx(advantages(name, rewards, groups, lengths), abs=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "gpg", "opo", "maxrl", "grpo_passk"])
@given(batch=batches(), shift=st.integers(-9, 9))
@settings(max_examples=25)
def test_groups_do_not_see_each_other(name: str, batch: tuple[list[float], list[int], list[int]], shift: int) -> None:
    """What stands in another group changes at most the common factor (gpg's alpha)."""
    rewards, groups, lengths = batch
    other = [reward + shift * (group == 1) for reward, group in zip(rewards, groups, strict=True)]
    first, second = advantages(name, rewards, groups, lengths), advantages(name, other, groups, lengths)
    kept = [i for i, group in enumerate(groups) if group != 1]
    assert [first[i] for i in kept] == pytest.approx([second[i] for i in kept], abs=1e-9)


@ALL
def test_nothing_in_nothing_out(name: str) -> None:
    assert advantages(name, [], []) == []


@ALL
def test_group_ids_without_members_change_nothing(name: str) -> None:
    # Every sample of groups 0, 2 and 3 was left out for want of a valid reward.
    sparse = advantages(name, [1.0, 0.0, 1.0, 0.0], [1, 1, 4, 4])
    assert sparse == pytest.approx(advantages(name, [1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1]))
