"""Coefficients that follow what they steer, by hand."""

from __future__ import annotations

import pytest

from rlsys.algorithms.coefficients import adapt_coefficients, initial_coefficients
from rlsys.config.algorithm_schema import AlgorithmConfig, EntropyConfig, KlConfig
from rlsys.types import Coefficients

FIXED = AlgorithmConfig(kl=KlConfig(coef=0.1), entropy=EntropyConfig(coef=0.01))
ADAPTIVE = AlgorithmConfig(
    kl=KlConfig(coef=0.1, target=0.05, horizon=1000), entropy=EntropyConfig(coef=0.01, target=0.5, delta=0.004)
)


def test_without_targets_nothing_moves() -> None:
    start = initial_coefficients(FIXED)
    assert start == Coefficients(kl=0.1, entropy=0.01, entropy_level=0.01)
    assert adapt_coefficients(start, FIXED, kl=9.0, entropy=9.0, num_trajectories=512) == start


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.05, 0.1), (0.055, 0.1 * (1 + 0.1 * 0.5)), (1.0, 0.1 * (1 + 0.2 * 0.5)), (0.0, 0.1 * (1 - 0.2 * 0.5))],
)
def test_the_kl_coefficient_by_hand(kl: float, expected: float) -> None:
    moved = adapt_coefficients(initial_coefficients(ADAPTIVE), ADAPTIVE, kl=kl, entropy=None, num_trajectories=500)
    assert moved.kl == pytest.approx(expected)
    assert moved.entropy == 0.01


def test_a_step_of_more_than_a_horizon_does_not_turn_the_penalty_around() -> None:
    assert adapt_coefficients(
        initial_coefficients(ADAPTIVE), ADAPTIVE, kl=0.0, entropy=None, num_trajectories=9000
    ).kl == pytest.approx(0.08)


def test_the_entropy_bonus_is_applied_at_or_below_the_target_and_its_level_stays_in_bounds() -> None:
    def step(level: float, entropy: float) -> tuple[float, float]:
        moved = adapt_coefficients(
            Coefficients(0.1, level, level), ADAPTIVE, kl=None, entropy=entropy, num_trajectories=1
        )
        return moved.entropy, moved.entropy_level

    assert step(0.01, 0.5) == pytest.approx((0.014, 0.014))
    assert step(0.01, 0.6) == pytest.approx((0.0, 0.006))
    assert step(0.001, 0.6) == (0.0, 0.0)
    assert step(0.999, 0.1) == (1.0, 1.0)
