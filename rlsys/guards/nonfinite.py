"""The guard against NaN and infinity: such a step is not applied, its causes are written, several are an alarm."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from rlsys.metrics.step import Metrics
from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.nonfinite import nonfinite_folder, nonfinite_row, write_nonfinite
from rlsys.types import NonFiniteTrajectory, RolloutGroup, ScoredGroup, TextRef, Trajectory

Fetch = Callable[[RolloutGroup], Awaitable[list[Trajectory]]]
TextOf = Callable[[TextRef | None], Awaitable[str]]
# Trajectories written for one step; the rest are only counted.
MAX_WRITTEN = 64


class NonFiniteGuard:
    """A count of the steps that were not applied; the trajectories that caused it go to `run_dir/nonfinite/`."""

    ALARM = "nonfinite"

    def __init__(
        self,
        run_dir: Path,
        limit: int,
        fetch: Fetch,
        text_of: TextOf,
        state: RunState,
    ) -> None:
        """Count on from a checkpoint's `state`.

        Args:
            run_dir: the run's folder.
            limit: steps in a row that are the alarm `nonfinite`.
            fetch: gives a group's token arrays.
            text_of: gives a response's text.
            state: where the counts stand.
        """
        self.in_a_row = state.nonfinite_in_a_row
        self.total = state.nonfinite_total
        self._run_dir = run_dir
        self._limit = limit
        self._fetch = fetch
        self._text_of = text_of

    async def record(self, step: int, found: Sequence[NonFiniteTrajectory], groups: Sequence[ScoredGroup]) -> Metrics:
        """Write a step's trajectories with NaN or infinity; their `group` is a position in `groups`.

        Returns:
            How many there are, and how many steps had some so far.
        """
        if found:
            self.total += 1
            self.in_a_row += 1
            await self._write(step, found, groups)
        else:
            self.in_a_row = 0
        return {"nonfinite/trajectories": float(len(found)), "nonfinite/steps": float(self.total)}

    def trouble(self) -> str | None:
        """Return what is wrong when too many steps in a row were not applied."""
        if self.in_a_row < self._limit:
            return None
        return (
            f"{self.in_a_row} steps in a row met NaN or infinity and were not applied "
            f"(train.max_nonfinite_steps={self._limit}); the trajectories are in "
            f"{nonfinite_folder(self._run_dir)}. Look at their field 'what': a reward function's own result, the "
            "engine's or the learner's log-probability, or the gradient (then lower learner.lr or "
            "learner.max_grad_norm)"
        )

    async def _write(self, step: int, found: Sequence[NonFiniteTrajectory], groups: Sequence[ScoredGroup]) -> None:
        rows = []
        for one in found[:MAX_WRITTEN]:
            group = groups[one.group]
            trajectory = (await self._fetch(group.rollout))[one.sample]
            response = await self._text_of(group.rewards[one.sample].response)
            rows.append(nonfinite_row(one, group, trajectory, response))
        write_nonfinite(self._run_dir, step, rows)
