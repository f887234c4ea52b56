"""One step's metrics as a line and as plain numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def as_json(metrics: Mapping[str, float | None]) -> str:
    """One line. JSON has no NaN: null stands for a number that is not one."""
    finite = numbers(metrics)
    return json.dumps({key: finite.get(key) for key in metrics})


def numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Those that are finite numbers."""
    return {key: value for key, value in metrics.items() if value is not None and math.isfinite(value)}
