"""Combination of a reward's parts into its total."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.types import FAILURES, Outcome, Reward, RewardPart

DIGITS = 12  # significant digits of a total, counted from its largest term; a float has almost 16
NOT_OK = (*FAILURES, "not_finite", "not_applicable")


def combine(
    parts: Mapping[str, RewardPart],
    weights: Mapping[str, float],
    extra: Mapping[str, Any] | None = None,
) -> Reward:
    """Return the weighted sum of the parts that apply. If a part failed there is no total; a failure is never a 0.

    Args:
        parts: the result of each function, by label.
        weights: the weight of each label.
        extra: what functions logged for this trajectory.
    """
    outcomes = [part.outcome for part in parts.values()]
    outcome: Outcome = "not_applicable"
    # The worst outcome of a part is that of the whole; parts that do not apply do not count.
    for candidate in ("not_finite", "error", "timeout", "ok"):
        if candidate in outcomes:
            outcome = candidate
            break
    total = None
    if outcome == "ok":
        # Parts that do not apply have no value.
        total = _sum([weights[name] * part.value for name, part in parts.items() if part.value is not None])
    return Reward(total=total, parts=dict(parts), outcome=outcome, extra=dict(extra or {}))


def _sum(terms: Sequence[float]) -> float:
    """Return the sum without the digits that rounding made: 0.6 + 0.3 + 0.1 is 1, and 0.1 + 0.2 equals 0.3.

    Totals are compared: with bars, with 0, and with each other. A single term is what its function returned.
    """
    total, largest = sum(terms), max(map(abs, terms))
    if len(terms) == 1 or largest == 0 or not math.isfinite(total):
        return total
    return round(total, DIGITS - math.ceil(math.log10(largest)))


def first_failure(rewards: Sequence[Sequence[Reward]], outcomes: Sequence[str] = NOT_OK) -> str:
    """Return label, outcome and detail of the first part with one of `outcomes`, for a message."""
    parts = (item for group in rewards for reward in group for item in reward.parts.items())
    for label, part in parts:
        if part.outcome in outcomes:
            return f"{label}: {part.outcome}: {part.detail or 'the function returned None'}"
    return "no rewards at all"
