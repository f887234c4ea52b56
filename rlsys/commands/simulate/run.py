"""A discrete-event simulation of training: real admission and routing, simulated engines, workers and learner."""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rlsys.commands.simulate.costs import Costs
from rlsys.commands.simulate.engine import SimulatedEngine
from rlsys.orchestrator.admission import Admission
from rlsys.orchestrator.router import Lease, Router


@dataclass(frozen=True)
class Shape:
    """The workers and sizes of a simulated run."""

    rollout_workers: int
    learner_ranks: int
    scoring_workers: int
    reference_workers: int  # 0: none
    prompts_per_step: int
    samples_per_prompt: int
    max_staleness: int
    max_in_flight: int
    num_steps: int = 40


@dataclass(frozen=True)
class Prediction:
    """The mean seconds per step, without the first and last steps, and the fraction of time that each role was idle."""

    step_s: float
    idle: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The role with the least idle time."""
        return min(self.idle, key=lambda role: self.idle[role])


class Simulation:
    """The simulation of one run. Call it once.

    Engines compute the time of their next event themselves; all other events wait in a heap of (time, order, action).
    """

    def __init__(self, costs: Costs, shape: Shape) -> None:
        self._costs = costs
        self._shape = shape
        self._admission = Admission(shape.prompts_per_step, shape.max_staleness, num_steps=shape.num_steps)
        self._router = Router([shape.max_in_flight] * shape.rollout_workers)
        self._leases: dict[int, Lease] = {}  # by group, while it is sampled
        self._engines = [SimulatedEngine(costs.engine, costs.max_num_seqs) for _ in range(shape.rollout_workers)]
        self._scoring = _Workers(shape.scoring_workers)
        self._reference = _Workers(shape.reference_workers) if shape.reference_workers else None
        self._lengths = itertools.cycle(costs.groups)
        self._lengths_of: dict[int, tuple[int, ...]] = {}
        self._unscored: dict[int, int] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._learner_busy_s = 0.0
        self._is_training = False
        self._done_at: list[float] = []

    def __call__(self) -> Prediction:
        """Simulate all steps and return the prediction."""
        self._admit()
        while len(self._done_at) < self._shape.num_steps:
            self._advance()
        gaps = [end - start for start, end in itertools.pairwise(self._done_at)]
        middle = gaps[3 : -(self._shape.max_staleness + 2)] or gaps
        total = self._now
        idle = {
            "rollout": 1.0 - sum(engine.busy_s for engine in self._engines) / (len(self._engines) * total),
            "learner": 1.0 - self._learner_busy_s / total,
            "scoring": 1.0 - self._scoring.busy_s / (self._shape.scoring_workers * total),
        }
        if self._reference is not None:
            idle["reference"] = 1.0 - self._reference.busy_s / (self._shape.reference_workers * total)
        return Prediction(statistics.mean(middle), idle)

    def _advance(self) -> None:
        times = [time for engine in self._engines if (time := engine.next_event()) is not None]
        if self._events:
            times.append(self._events[0][0])
        self._now = min(times)
        for engine in self._engines:
            for group, _ in engine.advance(self._now):
                self._leases[group].release(1)
                self._at(self._scoring.serve(self._now, self._costs.scoring), partial(self._scored, group))
        while self._events and self._events[0][0] <= self._now:
            heapq.heappop(self._events)[2]()
        self._admit()
        self._train()

    def _at(self, time: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), do))

    def _admit(self) -> None:
        num_samples = self._shape.samples_per_prompt
        while self._admission.capacity() and (lease := self._router.try_reserve(num_samples)) is not None:
            group, lengths = self._admission.admit(), next(self._lengths)
            self._leases[group], self._lengths_of[group], self._unscored[group] = lease, lengths, num_samples
            for sample in range(num_samples):
                self._engines[lease.engine].add(self._now, (group, sample), lengths[sample % len(lengths)])

    def _scored(self, group: int) -> None:
        self._unscored[group] -= 1
        if self._unscored[group]:
            return
        del self._unscored[group], self._leases[group]
        if self._reference is None:
            self._ready(group)
            return
        cost = self._costs.reference * self._shape.samples_per_prompt
        done = self._reference.serve(self._now, cost)
        self._at(done, partial(self._ready, group))

    def _ready(self, group: int) -> None:
        self._admission.complete(group)

    def _train(self) -> None:
        if self._is_training or len(self._done_at) == self._shape.num_steps:
            return
        taken = self._admission.take()
        if taken is None:
            return
        self._is_training = True
        tokens = sum(sum(self._lengths_of.pop(group)) for group in taken)
        update = self._costs.update + self._costs.update_token * tokens / self._shape.learner_ranks
        self._learner_busy_s += update + self._costs.broadcast
        self._at(self._now + update, self._broadcast)

    def _broadcast(self) -> None:
        for engine in self._engines:
            engine.pause(self._costs.broadcast)
        self._at(self._now + self._costs.broadcast + self._costs.other, self._stepped)

    def _stepped(self) -> None:
        self._is_training = False
        self._done_at.append(self._now)
        if len(self._done_at) < self._shape.num_steps:
            self._admission.advance(self._admission.policy_version + 1)


class _Workers:
    """A pool of equal workers, each with one task at a time."""

    def __init__(self, count: int) -> None:
        self._free_at = [0.0] * count
        self.busy_s = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """Give a task to the first free worker and return the time when it finishes."""
        start = max(now, heapq.heappop(self._free_at))
        heapq.heappush(self._free_at, start + seconds)
        self.busy_s += seconds
        return start + seconds
