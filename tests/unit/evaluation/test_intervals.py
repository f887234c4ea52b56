"""Estimates of evaluations against values computed in other ways."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.evaluation.intervals import bootstrap_mean, pass_at_k, reported_ks, wilson_interval


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_fraction_of_subsets_with_a_correct_one(case: tuple[int, int, int]) -> None:
    num_samples, num_correct, k = case
    subsets = list(itertools.combinations(range(num_samples), k))
    lucky = sum(any(index < num_correct for index in subset) for subset in subsets)
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(lucky / len(subsets))


def test_k_above_the_number_of_samples_is_an_error() -> None:
    with pytest.raises(ValueError, match="pass@3 of 2 samples"):
        pass_at_k(2, 1, 3)


@pytest.mark.parametrize(("count", "ks"), [(0, []), (1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_reported_ks(count: int, ks: list[int]) -> None:
    assert reported_ks(count) == ks


def test_wilson_by_hand() -> None:
    """8 of 10 at 95%: z = 1.959964; centre (0.8 + z²/20) / (1 + z²/10) = 0.716740, half width 0.226576."""
    found = wilson_interval([True] * 8 + [False] * 2, 0.95)
    assert (found.value, round(found.low, 6), round(found.high, 6)) == (0.8, 0.490162, 0.943318)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0.5, 0.999))
def test_the_interval_holds_the_value_and_stays_in_range(hits: list[bool], confidence: float) -> None:
    found = wilson_interval(hits, confidence)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high  # also if all trials have the same result


def test_the_bootstrap_is_near_the_normal_interval_of_many_values() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=1500)
    found = bootstrap_mean(values.tolist(), 0.95)
    half = 1.959964 * values.std() / math.sqrt(values.size)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_bootstrap_always_gives_the_same() -> None:
    assert bootstrap_mean([0.0, 1.0, 1.0], 0.9) == bootstrap_mean([0.0, 1.0, 1.0], 0.9)
    assert bootstrap_mean([0.5], 0.9).low == 0.5


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_values_have_wilson_s_interval(value: float) -> None:
    """Twelve at 95%: from 0 to z² / (12 + z²) = 0.242494, or what mirrors it."""
    found = bootstrap_mean([value] * 12, 0.95)
    assert found == wilson_interval([value == 1] * 12, 0.95)
    assert found.value == value
    assert found.high - found.low == pytest.approx(0.242494, abs=1e-6)
