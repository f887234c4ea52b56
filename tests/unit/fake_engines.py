"""A run without Ray: engines, rewards and a learner that take random times on a fake clock, around a real Scheduler.

Every rule is checked against books kept here, not against the scheduler's own.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from rlsys.orchestrator.admission import Ledger, Taken
from rlsys.orchestrator.scheduler import Admission, Scheduler


@dataclass(frozen=True)
class Workload:
    """What is run. The same `seed` means the same groups; `speed_seed` is who is fast, when, and what fails."""

    seed: int
    speed_seed: int
    max_staleness: int
    num_engines: int
    prompts_per_step: int = 5
    samples_per_prompt: int = 4
    reject_rate: float = 0.0
    max_rejects_per_step: int | None = None
    oversample: float = 1.0
    failure_rate: float = 0.0  # of an attempt
    loss_rate: float = 0.0  # of an engine, at each step
    first_version: int = 0


@dataclass
class _Started:
    """The latest attempt of a group."""

    attempt: int
    version: int
    engine: int
    sampled: set[int] = field(default_factory=set)
    has_failed: bool = False  # until its next attempt
    is_scored: bool = False


class FakeRun:
    """Plays a workload until enough trajectories are trained; `steps` is what each step trained."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.version = workload.first_version
        self.steps: list[list[int]] = []
        self.num_trained = 0
        self.num_late = 0
        self._random = random.Random(workload.speed_seed)
        self._speeds = [self._random.uniform(0.3, 3.0) for _ in range(workload.num_engines)]
        self._caps = [self._random.randint(1, 5 * workload.samples_per_prompt) for _ in range(workload.num_engines)]
        self._load = [0] * workload.num_engines
        self._clock = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._in_flight: dict[int, _Started] = {}
        self._first_version: dict[int, int] = {}  # of every group ever admitted
        self._trained: set[tuple[int, int]] = set()
        self._rejected: set[int] = set()
        self._is_training = False
        self._lost: int | None = None  # one engine at a time
        ledger = Ledger(
            workload.prompts_per_step,
            workload.max_staleness,
            policy_version=self.version,
            max_rejects_per_step=workload.max_rejects_per_step,
            oversample=workload.oversample,
        )
        self.scheduler = Scheduler(ledger, self._caps, workload.samples_per_prompt, max_attempts=1000)

    def play(self, num_trajectories: int) -> FakeRun:
        """Run until that many are trained, then check that nothing was left behind."""
        self._proceed()
        while self.num_trained < num_trajectories:
            assert self._events, f"deadlock at version {self.version}: {self.scheduler.metrics()}"
            self._clock, _, happen = heapq.heappop(self._events)
            happen()
            self._proceed()
        self._check_books()
        return self

    def is_useful(self, group: int) -> bool:
        """Depends on the group alone, as rewards do where sampling is reproducible."""
        return random.Random(self.workload.seed * 1_000_003 + group).random() >= self.workload.reject_rate

    def _later(self, delay: float, happen: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (self._clock + delay, self._num_events, happen))

    def _proceed(self) -> None:
        for admission in self.scheduler.admissions():
            self._start(admission)
        if not self._is_training and (taken := self.scheduler.take()) is not None:
            self._train(taken)

    def _start(self, admission: Admission) -> None:
        group, engine, attempt = admission.group_id, admission.engine, admission.attempt
        if attempt == 1:
            assert group == len(self._first_version), "groups are admitted in order, once"
            self._first_version[group] = self.version
        else:
            assert attempt == self._in_flight[group].attempt + 1
        self._in_flight[group] = _Started(attempt, self.version, engine)
        self._check_capacity()
        assert self._load[engine] == 0 or self._load[engine] + admission.num_samples <= self._caps[engine]
        self._load[engine] += admission.num_samples
        delays = [self._random.expovariate(1.0) / self._speeds[engine] for _ in range(admission.num_samples)]
        for sample, delay in enumerate(delays):
            self._later(delay, lambda sample=sample: self._sampled(group, attempt, sample))  # type: ignore[misc]
        if self._random.random() < self.workload.failure_rate:
            self._later(self._random.uniform(0.0, 1.5 * max(delays)), lambda: self._failed(group, attempt))

    def _check_capacity(self) -> None:
        work = self.workload
        if work.oversample > 1.0:
            return
        slots = (work.max_staleness + self.version + 1) * work.prompts_per_step
        # Without oversampling each step resolves B slots, and what is in flight fits into the others.
        resolved = (work.first_version + len(self.steps)) * work.prompts_per_step
        assert len(self._in_flight) <= slots - resolved, f"too many groups at version {self.version}"

    def _current(self, group: int, attempt: int) -> _Started | None:
        """What an event is about, unless it is late."""
        started = self._in_flight.get(group)
        return started if started and started.attempt == attempt and not started.has_failed else None

    def _sampled(self, group: int, attempt: int, sample: int) -> None:
        started = self._current(group, attempt)
        progress = self.scheduler.on_sampled(group, attempt, sample)
        if started is None:
            assert progress == "late"
            self.num_late += 1
            return
        assert sample not in started.sampled
        started.sampled.add(sample)
        self._load[started.engine] -= 1
        assert progress == ("whole" if self._is_whole(started) else "partial")
        if progress == "whole":
            self._later(self._random.expovariate(10.0), lambda: self._scored(group, attempt))

    def _scored(self, group: int, attempt: int) -> None:
        started, is_useful = self._current(group, attempt), self.is_useful(group)
        assert self.scheduler.on_scored(group, attempt, is_useful) == (started is not None)
        if started is None:
            return
        started.is_scored = True
        if not is_useful:
            self._rejected.add(group)
            del self._in_flight[group]

    def _failed(self, group: int, attempt: int) -> None:
        started = self._current(group, attempt)
        did_fail = self.scheduler.on_failed(group, attempt, "made to fail")
        assert did_fail == (started is not None and not started.is_scored)
        if did_fail and started is not None:
            self._load[started.engine] -= self.workload.samples_per_prompt - len(started.sampled)
            started.has_failed = True

    def _lose(self, engine: int) -> None:
        self._lost = engine
        ran = [
            g for g, s in self._in_flight.items() if s.engine == engine and not s.has_failed and not self._is_whole(s)
        ]
        assert self.scheduler.on_engine_lost(engine) == sorted(ran)
        for group in ran:
            self._in_flight[group].has_failed = True
        self._load[engine] = 0
        self._later(self._random.uniform(0.1, 2.0), lambda: self._add(engine))

    def _add(self, engine: int) -> None:
        self._lost = None
        self.scheduler.on_engine_added(engine)

    def _is_whole(self, started: _Started) -> bool:
        return len(started.sampled) == self.workload.samples_per_prompt

    def _train(self, taken: list[Taken]) -> None:
        work = self.workload
        for each in taken:
            group, started = each.group_id, self._in_flight.pop(each.group_id)
            assert self.version - started.version == each.staleness <= work.max_staleness, f"group {group}"
            assert started.is_scored, f"group {group} has no rewards"
            assert self._is_whole(started), f"group {group} is not whole"
            assert group not in self._rejected, f"group {group} was rejected"
            trained = {(group, sample) for sample in started.sampled}
            assert not trained & self._trained, f"group {group} is trained twice"
            self._trained |= trained
        if work.oversample == 1.0 and work.max_rejects_per_step is None:
            assert len(taken) == work.prompts_per_step
        self.steps.append([each.group_id for each in taken])
        self.num_trained += len(taken) * work.samples_per_prompt
        self._is_training = True
        self._later(self._random.uniform(0.0, 4.0), self._advance)
        if work.num_engines > 1 and self._lost is None and self._random.random() < work.loss_rate:
            self._lose(self._random.randrange(work.num_engines))

    def _advance(self) -> None:
        self._is_training = False
        self.version += 1
        self.scheduler.advance(self.version)

    def _check_books(self) -> None:
        """Every group is trained, rejected or in flight, and none is in flight past its step."""
        trained = {group for group, _ in self._trained}
        assert len(self._trained) == self.num_trained == len(trained) * self.workload.samples_per_prompt
        ended = trained | self._rejected
        assert len(ended) == len(trained) + len(self._rejected)
        assert self._first_version.keys() - ended == self._in_flight.keys()
        for group, started in self._in_flight.items():
            assert self.version - started.version <= self.workload.max_staleness, f"group {group} was left behind"
        counts = self.scheduler.metrics()
        assert counts["schedule/admitted"] == len(self._first_version)
        assert counts["schedule/taken"] == len(trained)
        assert counts["schedule/rejected"] == len(self._rejected)
