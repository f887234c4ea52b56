"""Parts to a total."""

from __future__ import annotations

from collections.abc import Mapping

from rlsys.types import Outcome, Reward, RewardPart


def combine(parts: Mapping[str, RewardPart], weights: Mapping[str, float], response: str) -> Reward:
    """Weighted sum of the parts that apply. A part that failed leaves the trajectory without a total: never a 0."""
    outcomes = [part.outcome for part in parts.values()]
    outcome: Outcome = "not_applicable"
    for candidate in ("error", "timeout", "ok"):
        if candidate in outcomes:
            outcome = candidate
            break
    total = None
    if outcome == "ok":
        total = sum(weights[name] * part.value for name, part in parts.items() if part.value is not None)
    return Reward(total=total, parts=dict(parts), outcome=outcome, response=response)
