"""Parts to a total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.types import Outcome, Reward, RewardPart


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


def first_failure(rewards: Sequence[Sequence[Reward]]) -> str:
    """What the first part that is not ok said, for a message about rewards of which none is valid."""
    parts = (item for group in rewards for reward in group for item in reward.parts.items())
    for label, part in parts:
        if part.outcome != "ok":
            return f"{label}: {part.outcome}: {part.detail or 'the function returned None'}"
    return "no rewards at all"
