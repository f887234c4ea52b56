"""Which prompt comes at which position."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.data.order import BLOCK, EpochOrder, MixtureOrder, quotas

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 1], [500, 500]),
        ([3, 1], [750, 250]),
        ([1], [1000]),
        ([999, 1], [999, 1]),
        ([1, 1, 1], [334, 333, 333]),
        ([9, 1], [900, 100]),
        ([8, 1, 1], [800, 100, 100]),
    ],
)
def test_quotas_by_hand(weights: list[float], expected: list[int]) -> None:
    assert quotas(weights, 1000) == expected


@given(st.lists(st.floats(1.0, 100.0), min_size=1, max_size=9))
def test_quotas_add_up_and_are_exact_to_one(weights: list[float]) -> None:
    counts = quotas(weights, BLOCK)
    assert sum(counts) == BLOCK
    assert min(counts) >= 1
    for count, weight in zip(counts, weights, strict=True):
        exact = BLOCK * weight / sum(weights)
        assert abs(count - exact) < 1


@given(SIZES, st.integers(0, 3), st.booleans())
def test_in_every_block_each_part_has_its_share_and_its_prompts_come_evenly(
    sizes: list[int], seed: int, shuffle: bool
) -> None:
    weights = [float(1 + part) for part in range(len(sizes))]
    order = MixtureOrder(sizes, weights, seed, shuffle=shuffle)
    firsts = [sum(sizes[:part]) for part in range(len(sizes))]
    for block in range(2):
        drawn = [order.at(block * BLOCK + offset) for offset in range(BLOCK)]
        counts = [sum(first <= n < first + size for n in drawn) for first, size in zip(firsts, sizes, strict=True)]
        assert counts == quotas(weights, BLOCK)
    every = Counter(order.at(position) for position in range(2 * BLOCK))
    for first, size in zip(firsts, sizes, strict=True):
        seen = [every[first + index] for index in range(size)]
        assert max(seen) - min(seen) <= 1  # no prompt a second time before all of its part have come


@given(SIZES, st.permutations(range(30)))
def test_a_position_gives_the_same_prompt_whenever_it_is_asked(sizes: list[int], positions: list[int]) -> None:
    positions = [position * 97 for position in positions]  # over several blocks, back and forth
    weights = [1.0] * len(sizes)
    asked = MixtureOrder(sizes, weights, 1, shuffle=True)
    fresh = {position: MixtureOrder(sizes, weights, 1, shuffle=True).at(position) for position in positions}
    assert {position: asked.at(position) for position in positions} == fresh


def test_without_shuffling_the_parts_alternate_evenly() -> None:
    order = MixtureOrder([5, 5], [3.0, 1.0], 0, shuffle=False)
    first_positions = [order.at(position) for position in range(8)]
    assert [number >= 5 for number in first_positions].count(True) == 2
    assert [number for number in first_positions if number < 5] == [0, 1, 2, 3, 4, 0]


def test_an_epoch_order_is_what_it_was_before_mixtures() -> None:
    """The order of runs that began under earlier versions: they resume where they were."""
    import numpy as np

    order = EpochOrder(7, [3], shuffle=True)
    for epoch in range(3):
        expected = np.random.default_rng([3, epoch]).permutation(7).tolist()
        assert [order.at(epoch * 7 + position) for position in range(7)] == expected
