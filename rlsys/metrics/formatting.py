"""Formatting of metric values: finite numbers, JSON rows, durations.

Everything that writes or shows a metric uses these helpers, so that NaN and infinity are treated the same everywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def finite(value: Any) -> float | None:
    """Return `value` as a float if it is a finite number or a bool, else None."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def short(value: Any, digits: int = 6) -> float | None:
    """Round a finite number to `digits` significant digits; return None for anything else."""
    number = finite(value)
    return None if number is None else float(f"{number:.{digits}g}")


def finite_items(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Return the items whose value is a finite number."""
    return {key: value for key, value in metrics.items() if value is not None and math.isfinite(value)}


def as_json(metrics: Mapping[str, float | None]) -> str:
    """Return the metrics as one line of JSON, with null for NaN and infinity, which JSON does not have."""
    numbers = finite_items(metrics)
    return json.dumps({key: numbers.get(key) for key in metrics})


def duration(seconds: float) -> str:
    """Return a duration in at most two units: `8.2 s`, `1 min 5 s`, `2 h 3 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
