"""Parts to a total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.types import FAILURES, Outcome, Reward, RewardPart

NOT_OK = (*FAILURES, "not_finite", "not_applicable")


def combine(
    parts: Mapping[str, RewardPart],
    weights: Mapping[str, float],
    extra: Mapping[str, Any] | None = None,
) -> Reward:
    """Weighted sum of the parts that apply. A part that failed leaves the trajectory without a total: never a 0."""
    outcomes = [part.outcome for part in parts.values()]
    outcome: Outcome = "not_applicable"
    for candidate in ("not_finite", "error", "timeout", "ok"):
        if candidate in outcomes:
            outcome = candidate
            break
    total = None
    if outcome == "ok":
        total = sum(weights[name] * part.value for name, part in parts.items() if part.value is not None)
    return Reward(total=total, parts=dict(parts), outcome=outcome, extra=dict(extra or {}))


def first_failure(rewards: Sequence[Sequence[Reward]], outcomes: Sequence[str] = NOT_OK) -> str:
    """What the first part with one of `outcomes` said, for a message."""
    parts = (item for group in rewards for reward in group for item in reward.parts.items())
    for label, part in parts:
        if part.outcome in outcomes:
            return f"{label}: {part.outcome}: {part.detail or 'the function returned None'}"
    return "no rewards at all"
