"""Parts to a total."""

from __future__ import annotations

import pytest

from rlsys.scoring.combine import combine
from rlsys.types import Outcome, RewardPart

OK, LENGTH = RewardPart(1.0, "ok"), RewardPart(-3.0, "ok")
NOT_APPLICABLE, FAILED, LATE = (RewardPart(None, outcome) for outcome in ("not_applicable", "error", "timeout"))
WEIGHTS = {"a": 2.0, "b": 0.5, "c": 10.0}


def test_a_weighted_sum() -> None:
    reward = combine({"a": OK, "b": LENGTH}, WEIGHTS)
    assert reward.total == 0.5  # 2 * 1 + 0.5 * -3
    assert reward.outcome == "ok"
    assert reward.parts == {"a": OK, "b": LENGTH}


def test_rounding_makes_no_total_differ() -> None:
    """As floats 0.6 + 0.3 + 0.1 < 1, 0.1 + 0.2 > 0.3, and 0.1 + 0.2 - 0.3 is not 0."""
    parts = dict.fromkeys("abc", OK)
    assert combine(parts, {"a": 0.6, "b": 0.3, "c": 0.1}).total == 1.0
    assert combine(parts, {"a": 0.1, "b": 0.2, "c": 0.0}).total == 0.3
    assert combine(parts, {"a": 0.1, "b": 0.2, "c": -0.3}).total == 0.0
    assert combine(parts, {"a": 1e-30, "b": 2e-30, "c": 0.0}).total == pytest.approx(3e-30, rel=1e-10)
    assert combine({"a": RewardPart(1 / 3, "ok")}, {"a": 1.0}).total == 1 / 3


def test_what_does_not_apply_is_left_out() -> None:
    reward = combine({"a": OK, "c": NOT_APPLICABLE}, WEIGHTS)
    assert (reward.total, reward.outcome) == (2.0, "ok")


@pytest.mark.parametrize(
    ("parts", "outcome"),
    [
        ([OK, FAILED], "error"),
        ([LATE, OK], "timeout"),
        ([LATE, FAILED], "error"),
        ([NOT_APPLICABLE, LATE], "timeout"),
        ([NOT_APPLICABLE, NOT_APPLICABLE], "not_applicable"),
        ([NOT_APPLICABLE], "not_applicable"),
    ],
)
def test_without_a_valid_part_or_with_a_failed_one_there_is_no_number(
    parts: list[RewardPart], outcome: Outcome
) -> None:
    reward = combine(dict(zip("ab", parts, strict=False)), WEIGHTS)
    assert reward.total is None
    assert reward.outcome == outcome


def test_a_reward_of_zero_is_a_number() -> None:
    assert combine({"a": RewardPart(0.0, "ok")}, WEIGHTS).total == 0.0
