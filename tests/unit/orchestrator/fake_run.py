"""A run without Ray: engines, rewards and a learner that take random times on a virtual clock, around a real
Orchestrator.

Every rule is checked against books kept here, not against those of admission or router.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from rlsys.data.order import EpochOrder
from rlsys.data.stream import PromptStream
from rlsys.errors import SampleError, WorkerDiedError
from rlsys.orchestrator.admission import Admission
from rlsys.orchestrator.batch import StepBatch
from rlsys.orchestrator.orchestrator import GroupRule, Orchestrator
from rlsys.orchestrator.router import Router
from rlsys.orchestrator.sampling import GroupSampler
from rlsys.runtime.background import Background
from rlsys.types import Prompt, Sample, Sampling, ScoringUnit, TrajectoryRef, UnitScores
from tests.unit.records import reward, summary
from tests.unit.virtual_time import run_virtual

T = TypeVar("T")


@dataclass(frozen=True)
class Workload:
    """What is run. The same `seed` means the same groups; `speed_seed` decides who is fast, when, and what fails."""

    seed: int
    speed_seed: int
    max_staleness: int
    num_engines: int
    prompts_per_step: int = 5
    samples_per_prompt: int = 4
    reject_rate: float = 0.0
    max_extra_per_step: int | None = None
    oversample: float = 1.0
    failure_rate: float = 0.0  # of an attempt
    death_rate: float = 0.0  # of an engine, at each step; the last engine stays
    first_version: int = 0


@dataclass
class _Attempt:
    """The latest attempt of a group, and what this and the ones before it have sampled, by which engine."""

    version: int
    delivered: dict[int, int] = field(default_factory=dict)


class FakeEngine:
    """Samples each trajectory in a random time of its own; some attempts fail, and the engine may die."""

    def __init__(self, run: FakeRun, index: int, speed: float, cap: int) -> None:
        self.name = f"rollout/{index}"
        self.index = index
        self.cap = cap
        self.num_running = 0
        self._run = run
        self._speed = speed
        self.is_dead = False
        self._sleeping: set[asyncio.Future[None]] = set()

    def die(self) -> None:
        """Whoever waits for a trajectory learns it at once."""
        self.is_dead = True
        for sleeper in [sleeper for sleeper in self._sleeping if not sleeper.done()]:
            sleeper.set_exception(WorkerDiedError(f"{self.name} is gone"))

    @asynccontextmanager
    async def sample(
        self,
        prompt: Prompt,
        sampling_params: Sequence[Sampling],
        *,
        stream: int,
        policy_version: int,
        done: Collection[int] = (),
    ) -> AsyncIterator[AsyncIterator[list[Sample]]]:
        attempt = self._run.on_attempt(stream, policy_version, set(done))
        missing = [number for number in range(sampling_params[0].samples_per_prompt) if number not in done]
        size = len(missing)
        assert self.num_running == 0 or self.num_running + size <= self.cap, f"{self.name} has no room"
        chance, left = self._run.chance, size
        delays = [chance.expovariate(1.0) / self._speed for _ in range(size)]
        fails_at = chance.uniform(0.0, 1.5 * max(delays)) if chance.random() < self._run.workload.failure_rate else None
        self.num_running += size

        async def finished() -> AsyncIterator[list[Sample]]:
            nonlocal left
            started = asyncio.get_running_loop().time()
            for delay, number in sorted(zip(delays, missing, strict=True)):
                until = min(delay, delay if fails_at is None else fails_at)
                await self._sleep_until(started + until)
                if until < delay:
                    raise SampleError(f"sample {number}: made to fail")
                left -= 1
                self.num_running -= 1
                assert number not in attempt.delivered, f"sample {number} of group {stream} is sampled twice"
                attempt.delivered[number] = self.index
                given = summary(3, version=policy_version, engine=self.index)
                yield [Sample(number, given, TrajectoryRef("made up", number))]

        try:
            yield finished()
        finally:
            self.num_running -= left

    async def _sleep_until(self, moment: float) -> None:
        """Raise WorkerDiedError as soon as the engine dies."""
        sleeper = at(moment, None)
        self._sleeping.add(sleeper)
        try:
            await sleeper
        finally:
            self._sleeping.discard(sleeper)


def at(moment: float, result: T) -> asyncio.Future[T]:
    """A future that has its result at a time of the loop's."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    loop.call_at(moment, lambda: None if future.done() else future.set_result(result))
    return future


class FakeScoring:
    """Scores after a random time; a group's rewards depend on the group alone."""

    is_idle = True
    num_waiting = 0

    def __init__(self, run: FakeRun) -> None:
        self._run = run

    def put(self, unit: ScoringUnit) -> asyncio.Future[UnitScores]:
        is_useful = self._run.is_useful(unit.prompt.index)
        rewards = [reward(float(is_useful and (sample.number % 2 == 0))) for sample in unit.samples]
        return at(asyncio.get_running_loop().time() + self._run.chance.expovariate(10.0), (rewards, {}))


class FakeRun:
    """Plays a workload until enough trajectories are trained; `steps` is what each step trained."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.chance = random.Random(workload.speed_seed)
        self.version = workload.first_version
        self.steps: list[list[int]] = []
        self.num_trained = 0
        self.attempts: dict[int, _Attempt] = {}  # the latest of each group ever started
        self.num_restarted = 0
        self.num_deaths = 0
        self._trained: set[int] = set()
        self._rejected: set[int] = set()

    def play(self, num_trajectories: int) -> FakeRun:
        """Run until that many are trained, then check that nothing was left behind."""
        run_virtual(self._play(num_trajectories))
        return self

    def is_useful(self, group: int) -> bool:
        """Depends on the group alone, as rewards do where sampling is reproducible."""
        has_variance = self.workload.samples_per_prompt > 1
        chance = random.Random(self.workload.seed * 1_000_003 + group).random()
        return has_variance and chance >= self.workload.reject_rate

    def on_attempt(self, group: int, version: int, done: set[int]) -> _Attempt:
        """Note that an engine was asked to sample what is missing of a group."""
        before = self.attempts.get(group)
        if before is not None:
            assert group not in self._trained, f"group {group} is trained already"
            assert before.delivered.keys() == done, f"group {group}: what was sampled is lost"
            self.num_restarted += 1
        else:
            assert group == len(self.attempts), "groups are admitted in order, once"
        if before is not None and done:
            assert version == before.version, f"group {group} counts as newer than its oldest sample"
            return before
        assert version == self.version, f"group {group} starts under {version}, the engines have {self.version}"
        attempt = self.attempts[group] = _Attempt(version)
        self._check_capacity()
        return attempt

    async def _play(self, num_trajectories: int) -> None:
        work = self.workload
        engines = [
            FakeEngine(self, index, self.chance.uniform(0.3, 3.0), self.chance.randint(1, 5 * work.samples_per_prompt))
            for index in range(work.num_engines)
        ]
        prompts = [Prompt(number, "", np.array([1], dtype=np.int32)) for number in range(num_trajectories * 4 + 100)]
        self.admission = Admission(
            work.prompts_per_step,
            work.max_staleness,
            policy_version=self.version,
            max_extra_per_step=work.max_extra_per_step,
            oversample=work.oversample,
        )
        background, router = Background(), Router([engine.cap for engine in engines])
        sampler = GroupSampler(
            dict(enumerate(engines)),
            FakeScoring(self),
            router,
            lose=lambda engine, _: router.remove(engine),
            whole_groups=False,
            deadline_s=1e6,
            max_attempts=1_000,
        )
        self.orchestrator = Orchestrator(
            background,
            sampler,
            self.admission,
            PromptStream(prompts, EpochOrder(len(prompts), [0], shuffle=False)),
            [Sampling(1.0, 3, work.samples_per_prompt)],
            # Where samples_per_prompt is 1 no group has variance, and all of them are kept.
            GroupRule(work.prompts_per_step, work.samples_per_prompt == 1, compares_parts=False, on_error="mask"),
            None,
            deadline_s=1e6,
        )
        await background.supervise(self._train(engines, num_trajectories))
        self._check_books()

    async def _train(self, engines: Sequence[FakeEngine], num_trajectories: int) -> None:
        while self.num_trained < num_trajectories:
            batch = await self.orchestrator.next_batch(self.version + 1)
            self._check_batch(batch)
            alive = [engine for engine in engines if not engine.is_dead]
            if len(alive) > 1 and self.chance.random() < self.workload.death_rate:
                self.chance.choice(alive).die()
                self.num_deaths += 1
            await asyncio.sleep(self.chance.uniform(0.0, 4.0))
            self.version += 1

    def _check_capacity(self) -> None:
        work = self.workload
        if work.oversample > 1.0:
            return
        in_flight = len(self.attempts) - len(self._trained) - len(self._rejected)
        # Each step resolves B slots, and what is in flight fits into the others. A rejected group is known here only
        # with its batch, and then at most one more was admitted for each.
        unseen = in_flight if work.reject_rate else 0
        slots = (work.max_staleness + self.version + 1) * work.prompts_per_step
        resolved = (work.first_version + len(self.steps)) * work.prompts_per_step
        assert in_flight - unseen <= slots - resolved, f"too many groups at version {self.version}"
        assert self.admission.num_running <= slots - resolved

    def _check_batch(self, batch: StepBatch) -> None:
        work = self.workload
        trained = {group.group_id for group in batch.trained_groups}
        for group in batch.groups:
            attempt, number = self.attempts[group.group_id], group.group_id
            assert attempt.delivered.keys() == set(range(work.samples_per_prompt)), f"group {number} is not whole"
            assert {each.policy_version for each in group.rollout.summaries} == {attempt.version}
            assert [each.engine for each in group.rollout.summaries] == [
                attempt.delivered[sample] for sample in range(work.samples_per_prompt)
            ]
            assert len(group.rewards) == work.samples_per_prompt
            assert number not in self._trained | self._rejected, f"group {number} comes twice"
            if number in trained:
                assert self.version - attempt.version <= work.max_staleness, f"group {number} is too stale"
                assert self.is_useful(number) or work.samples_per_prompt == 1, f"group {number} teaches nothing"
            else:
                assert not self.is_useful(number), f"group {number} was rejected"
                self._rejected.add(number)
        if work.oversample == 1.0 and work.max_extra_per_step is None:
            assert len(trained) == work.prompts_per_step
        self._trained |= trained
        self.steps.append(sorted(trained))
        self.num_trained += len(trained) * work.samples_per_prompt

    def _check_books(self) -> None:
        """Every group is trained, rejected or in flight, and none is in flight past its step."""
        ended = self._trained | self._rejected
        finished = [position for position, _ in self.orchestrator.finished(self.version)]
        pending = {*self.orchestrator.pending_positions(), *finished}
        ledger = self.orchestrator.ledger(self.version)
        assert ledger["issued"] == sum(count for name, count in ledger.items() if name != "issued")
        known_rejects = set(self.attempts) - ended - pending  # since the last batch
        assert all(not self.is_useful(group) for group in known_rejects)
        for group in pending:
            version = self.attempts[group].version
            assert self.version - version <= self.workload.max_staleness, f"group {group} was left behind"
        counts = self.orchestrator.metrics()
        assert counts["schedule/admitted"] == len(self.attempts)
        assert counts["schedule/taken"] == len(self._trained)
        assert counts["schedule/rejected"] == len(self._rejected) + len(known_rejects)
        # Counted when an attempt fails; here when the next one begins.
        assert 0 <= counts["schedule/restarted"] - self.num_restarted <= len(pending)
