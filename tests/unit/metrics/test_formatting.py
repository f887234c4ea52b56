"""Formatting of metric values."""

from __future__ import annotations

import json
import math

import pytest

from rlsys.metrics.formatting import as_json, duration, finite, finite_items, short


@pytest.mark.parametrize(
    ("value", "expected"), [(1, 1.0), (True, 1.0), (2.5, 2.5), (None, None), ("1", None), (math.nan, None)]
)
def test_finite(value: object, expected: float | None) -> None:
    assert finite(value) == expected


def test_short_keeps_significant_digits() -> None:
    assert [short(value, 4) for value in (0.123456, -123456.0, 0.00012345678, math.inf, None)] == [
        0.1235,
        -123500.0,
        0.0001235,
        None,
        None,
    ]


def test_json_has_null_for_what_it_cannot_hold() -> None:
    row = {"step": 1, "a": 0.5, "b": None, "c": math.nan, "d": -math.inf}
    assert json.loads(as_json(row)) == {"step": 1, "a": 0.5, "b": None, "c": None, "d": None}
    assert finite_items(row) == {"step": 1, "a": 0.5}


def test_durations_have_at_most_two_units() -> None:
    assert [duration(seconds) for seconds in (0.25, 59.94, 61.0, 3600.0, 7384.0)] == [
        "0.2 s",
        "59.9 s",
        "1 min 1 s",
        "1 h 0 min",
        "2 h 3 min",
    ]
