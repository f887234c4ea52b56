"""The guard against steps and evaluations without any valid reward: several in a row are the alarm `unscored`.

A reward service that is down for one step costs that step; a reward function that is broken ends the run soon.
"""

from __future__ import annotations

import logging

from rlsys.errors import RlsysError
from rlsys.metrics.step import Metrics

logger = logging.getLogger(__name__)


class NoRewardError(RlsysError):
    """The error when nothing that was scored has a valid reward; the message has the first failure's detail."""


class MissingRewardGuard:
    """A count of steps or evaluations without a valid reward: each is logged, and `limit` in a row are an alarm."""

    ALARM = "unscored"

    def __init__(self, metric: str, limit: int, *, in_a_row: int = 0, total: int = 0) -> None:
        """Count under `metric`, from where a checkpoint left the counts."""
        self.in_a_row = in_a_row
        self.total = total
        self._metric = metric
        self._limit = limit
        self._why = ""

    def record(self, step: int, why: str | None) -> Metrics:
        """Count what a step lacked, None for nothing; returns the total as a metric."""
        if why is None:
            self.in_a_row = 0
        else:
            self.in_a_row += 1
            self.total += 1
            self._why = why
            logger.warning("step %d: %s", step, why)
        return {self._metric: float(self.total)}

    def trouble(self) -> str | None:
        """Return what is wrong when too many in a row had no valid reward."""
        if self.in_a_row < self._limit:
            return None
        return f"{self.in_a_row} times in a row (scoring.max_unscored_steps={self._limit}): {self._why}"
