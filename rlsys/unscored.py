"""What happens to a step without one valid reward: it trains nothing and is counted, and several in a row end the run.

A service that is down for a step costs that step; a function that is broken costs the run, soon.
"""

from __future__ import annotations

from collections.abc import Callable

from rlsys.errors import RlsysError
from rlsys.metrics.step import Metrics


class NoRewardError(RlsysError):
    """Of all that was scored nothing has a valid reward; the message has the first failure's detail."""


class UnscoredSteps:
    """Counts them, says each, and ends the run at `limit` in a row."""

    def __init__(self, limit: int, say: Callable[[str], None]) -> None:
        self._limit = limit
        self._say = say
        self._in_a_row = 0
        self._total = 0
        self._why = ""

    def record(self, step: int, why: str | None) -> Metrics:
        """What a step, or its evaluation, lacked; None for nothing."""
        if why is None:
            self._in_a_row = 0
        else:
            self._in_a_row += 1
            self._total += 1
            self._why = why
            self._say(f"step {step}: {why}")
        return {"reward/unscored_steps": float(self._total)}

    def check(self) -> None:
        """Raise NoRewardError when too many steps in a row had no reward."""
        if self._in_a_row >= self._limit:
            raise NoRewardError(
                f"{self._in_a_row} times in a row (scoring.max_unscored_steps={self._limit}) nothing could be trained "
                f"or evaluated. The last time: {self._why}"
            )
