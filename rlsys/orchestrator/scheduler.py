"""Fed with what happened, says what to do next: ledger, router and what is known of each group.

The caller loops: hand in events, start what `admissions` says, train what `take` gives, `advance` once the engines have
the weights. It calls from one thread. No trajectory is trained twice or lost: every event must be about a group's
current attempt; those of earlier ones are late and change nothing, all others that cannot be are errors.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlsys.errors import ScheduleError, WorkerDiedError, WorkerError
from rlsys.orchestrator.admission import Ledger, Taken
from rlsys.orchestrator.router import Router

Progress = Literal["late", "partial", "whole"]
"""What a sample meant: of an earlier attempt, to be ignored; more are to come; the group can be scored."""


@dataclass(frozen=True)
class Admission:
    """Sample this group there. Attempts count from 1; with the first the caller draws the prompt."""

    group_id: int
    engine: int
    num_samples: int
    attempt: int


@dataclass
class _Group:
    """From its admission until it is scored."""

    attempt: int = 1
    engine: int | None = None  # where it runs; None before and after
    missing: set[int] = field(default_factory=set)  # samples that its engine has yet to generate
    is_waiting: bool = False  # for an engine, after a failure


class Scheduler:
    """Groups of `samples_per_prompt` trajectories, admitted by `ledger`, sampled on the engines of `caps`."""

    def __init__(
        self,
        ledger: Ledger,
        caps: Sequence[int],
        samples_per_prompt: int,
        *,
        max_attempts: int = 3,
        first_group_id: int = 0,
    ) -> None:
        """`caps` are concurrent trajectories of each engine. Raises ValueError for sizes below 1."""
        if samples_per_prompt < 1 or max_attempts < 1:
            raise ValueError(f"samples_per_prompt={samples_per_prompt}, max_attempts={max_attempts}: at least 1 each")
        self.num_restarted = 0
        self._ledger = ledger
        self._router = Router(caps)
        self._samples_per_prompt = samples_per_prompt
        self._max_attempts = max_attempts
        self._first_id = self._next_id = first_group_id
        self._groups: dict[int, _Group] = {}
        self._on_engine: list[set[int]] = [set() for _ in caps]
        self._waiting: list[int] = []  # heap: the oldest restarts first

    @property
    def policy_version(self) -> int:
        """The version under which groups start now."""
        return self._ledger.policy_version

    def admissions(self) -> list[Admission]:
        """What to start now, restarts first; new groups have ids in the order of the list."""
        admitted = []
        while self._waiting or self._ledger.capacity() > 0:
            engine = self._router.route(self._samples_per_prompt)
            if engine is None:
                break
            group_id = self._restarted() if self._waiting else self._new()
            group = self._groups[group_id]
            group.engine = engine
            group.missing = set(range(self._samples_per_prompt))
            self._on_engine[engine].add(group_id)
            admitted.append(Admission(group_id, engine, self._samples_per_prompt, group.attempt))
        return admitted

    def on_sampled(self, group_id: int, attempt: int, sample: int) -> Progress:
        """One trajectory is generated; its engine has room again. Raises ScheduleError when it was already."""
        group = self._current(group_id, attempt)
        if group is None:
            return "late"
        if group.engine is None or sample not in group.missing:
            raise ScheduleError(f"group {group_id}: sample {sample} of attempt {attempt} is not being generated")
        group.missing.remove(sample)
        self._router.release(group.engine)
        if group.missing:
            return "partial"
        self._on_engine[group.engine].remove(group_id)
        group.engine = None
        return "whole"

    def on_scored(self, group_id: int, attempt: int, keep: bool) -> bool:
        """A whole group has its rewards: to be trained, or rejected where they teach nothing. False when it is late."""
        group = self._current(group_id, attempt)
        if group is None:
            return False
        if group.missing or group.is_waiting:
            raise ScheduleError(f"group {group_id} was scored in attempt {attempt} before all of it was generated")
        if keep:
            self._ledger.complete(group_id)
        else:
            self._ledger.reject(group_id)
        del self._groups[group_id]
        return True

    def on_failed(self, group_id: int, attempt: int, error: str, sample: int | None = None) -> bool:
        """An attempt failed before its group was scored: all of it runs again, on any engine. False when it is late.

        Its samples that still run count as gone: the caller aborts them. After an engine's death `on_engine_lost` must
        come first, or the group may be sent there again. Raises WorkerError after the last attempt.
        """
        group = self._current(group_id, attempt)
        if group is None:
            return False
        if group.is_waiting:
            raise ScheduleError(f"group {group_id} failed in attempt {attempt}, which has not started")
        what = f"group {group_id}" if sample is None else f"group {group_id}, sample {sample}"
        if attempt >= self._max_attempts:
            raise WorkerError(f"{what} failed in {attempt} of {self._max_attempts} attempts. Last failure: {error}")
        if group.engine is not None:
            self._on_engine[group.engine].remove(group_id)
            self._router.release(group.engine, len(group.missing))
        self._put_back(group_id, group)
        return True

    def on_engine_lost(self, engine: int, error: str = "the engine is gone") -> list[int]:
        """An engine died: the groups that ran there, returned in order, run again elsewhere. It may be told twice.

        Raises WorkerDiedError when no engine is left, WorkerError when a group has lost its last attempt.
        """
        if not self._router.remove(engine):
            return []
        if not self._router.load:
            raise WorkerDiedError(f"no engine is left to sample on; engine {engine} was the last: {error}")
        lost = sorted(self._on_engine[engine])
        self._on_engine[engine].clear()
        for group_id in lost:
            group = self._groups[group_id]
            group.engine = None  # its load went with the engine
            self.on_failed(group_id, group.attempt, f"engine {engine}: {error}")
        return lost

    def on_engine_added(self, engine: int) -> None:
        """An engine that was lost serves again, with the current weights."""
        self._router.add(engine)

    def take(self) -> list[Taken] | None:
        """The groups of the next step, or None: see Ledger.take."""
        return self._ledger.take()

    def advance(self, policy_version: int) -> None:
        """The engines have the weights of the step taken last: see Ledger.advance."""
        self._ledger.advance(policy_version)

    def metrics(self) -> dict[str, float]:
        """Depths of the queues now, and counts of groups since the start."""
        load = self._router.load
        running = sum(map(len, self._on_engine))
        depths = {
            "running_groups": running,
            "waiting_groups": len(self._waiting),
            "unscored_groups": len(self._groups) - running - len(self._waiting),
            "ready_groups": self._ledger.num_ready,
            "running_trajectories": sum(load.values()),
            **{f"running_trajectories/engine_{engine}": count for engine, count in load.items()},
        }
        counts = {
            "admitted": self._ledger.num_admitted,
            "taken": self._ledger.num_taken,
            "rejected": self._ledger.num_rejected,
            "burned": self._ledger.num_burned,
            "restarted": self.num_restarted,
        }
        return {f"schedule/{name}": float(value) for name, value in (depths | counts).items()}

    def _new(self) -> int:
        group_id = self._next_id
        self._next_id += 1
        self._ledger.admit(group_id)
        self._groups[group_id] = _Group()
        return group_id

    def _restarted(self) -> int:
        group_id = heapq.heappop(self._waiting)
        self._groups[group_id].is_waiting = False
        self._ledger.restart(group_id)  # again: weights may have come while it waited
        return group_id

    def _put_back(self, group_id: int, group: _Group) -> None:
        self.num_restarted += 1
        group.attempt += 1
        group.engine = None
        group.is_waiting = True
        # At once and not only when it runs again: a step need not wait for what will be younger.
        self._ledger.restart(group_id)
        heapq.heappush(self._waiting, group_id)

    def _current(self, group_id: int, attempt: int) -> _Group | None:
        """The group that an event is about; None for an event that is late. Raises ScheduleError for the impossible."""
        group = self._groups.get(group_id)
        if group is None:
            # What was scored is forgotten: its attempts cannot be told apart any more.
            if self._first_id <= group_id < self._next_id:
                return None
            raise ScheduleError(f"group {group_id} was never admitted")
        if attempt > group.attempt:
            raise ScheduleError(f"group {group_id} is in attempt {group.attempt}, attempt {attempt} has not started")
        return group if attempt == group.attempt else None
