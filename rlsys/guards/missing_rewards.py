"""What happens to a step, or an evaluation, without one valid reward: it is counted, and several in a row end the run.

A service that is down for a step costs that step; a function that is broken costs the run, soon.
"""

from __future__ import annotations

from collections.abc import Callable

from rlsys.config.schema import Config
from rlsys.errors import RlsysError
from rlsys.metrics.step import Metrics
from rlsys.run_folder.checkpoint import RunState


class NoRewardError(RlsysError):
    """Of all that was scored nothing has a valid reward; the message has the first failure's detail."""


class Unscored:
    """Counts them under `metric`, says each, and ends the run at `limit` in a row."""

    def __init__(
        self, metric: str, limit: int, say: Callable[[str], None], *, in_a_row: int = 0, total: int = 0
    ) -> None:
        self._metric = metric
        self._limit = limit
        self._say = say
        self.in_a_row = in_a_row
        self.total = total
        self._why = ""

    def record(self, step: int, why: str | None) -> Metrics:
        """What the step lacked; None for nothing."""
        if why is None:
            self.in_a_row = 0
        else:
            self.in_a_row += 1
            self.total += 1
            self._why = why
            self._say(f"step {step}: {why}")
        return {self._metric: float(self.total)}

    def check(self) -> None:
        """Raise NoRewardError when too many in a row had no reward."""
        if self.in_a_row >= self._limit:
            raise NoRewardError(
                f"{self.in_a_row} times in a row (scoring.max_unscored_steps={self._limit}): {self._why}"
            )


def unscored_steps(config: Config, state: RunState, say: Callable[[str], None]) -> Unscored:
    """The count of a run's steps without a reward, where a checkpoint left it."""
    counted = {"in_a_row": state.unscored_in_a_row, "total": state.unscored_total}
    return Unscored("reward/unscored_steps", config.scoring.max_unscored_steps, say, **counted)
