"""Engines, scoring workers and reference workers that answer at once, in an order of the seed's, around real parts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from rlsys.config.schema import Config
from rlsys.data.order import EpochOrder
from rlsys.data.stream import PromptStream
from rlsys.errors import SampleError
from rlsys.orchestrator.batch import StepBatch
from rlsys.orchestrator.from_config import orchestrator_of, sampler_of
from rlsys.orchestrator.orchestrator import NEW_RUN, Orchestrator, Resumed
from rlsys.runtime.background import Background
from rlsys.runtime.batching import BatchingQueue
from rlsys.runtime.occupancy import Occupancy
from rlsys.types import (
    Prompt,
    ReferenceScores,
    Reward,
    RolloutGroup,
    Sample,
    Sampling,
    ScoredGroup,
    ScoringUnit,
    TextRef,
    TrajectoryRef,
    UnitScores,
)
from tests.unit.records import reward, summary


class Engine:
    """Hands over a group's trajectories in parts of random size and order."""

    def __init__(self, source: Source, index: int) -> None:
        self.name = f"worker/{index}"
        self.index = index
        self.num_running = 0
        self._source = source

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
        every = range(sum(sampling.samples_per_prompt for sampling in sampling_params))
        left = [number for number in every if number not in done]
        chance = self._source.chance
        is_first = stream not in self._source.started
        self._source.started.add(stream)
        unlucky = {number for number in left if is_first and chance.random() < self._source.failing_share}
        chance.shuffle(left)

        async def finished() -> AsyncIterator[list[Sample]]:
            while left:
                for _ in range(chance.randint(0, 5)):
                    await asyncio.sleep(0)
                part = [left.pop() for _ in range(chance.randint(1, len(left)))]
                self._source.failing -= len(part)
                failed = [number for number in part if number in unlucky or self._source.failing >= 0]
                if failed:
                    self._source.num_failed += 1
                    raise SampleError(f"sample {failed[0]}: out of memory")
                given = summary(3, version=policy_version, engine=self.index)
                yield [Sample(number, given, TrajectoryRef(f"chunk of {prompt.index}", number)) for number in part]

        yield finished()


class Source:
    """Everything around an orchestrator. The k-th prompt's group has rewards 0 and 1 where `useful` says so, and
    otherwise two alike."""

    def __init__(
        self,
        useful: list[bool],
        *,
        greedy: bool = False,
        seed: int = 0,
        engines: int = 2,
        staleness: int = 0,
        reference: bool = False,
        failing: int = 0,
        failing_share: float = 0.0,
        whole_groups: bool = False,
        on_error: str = "mask",
        after: Source | None = None,
        **rule: Any,
    ) -> None:
        """Start anew, or where another was cut off, as from a checkpoint of its last step."""
        self.useful = useful
        self.config = Config()
        self.config.train.prompts_per_step = 2
        self.config.train.max_staleness = staleness
        self.config.train.samples_per_prompt = 2
        self.config.train.num_steps = 10_000
        self.config.scoring.whole_groups = whole_groups
        self.config.scoring.on_error = on_error
        self.config.rollout.deadline_s = 20.0
        if greedy:
            self.config.algorithm.advantage = {"name": "remax"}
        for key, value in rule.items():
            setattr(self.config.algorithm.groups, key, value)
        self.chance = random.Random(seed)
        self.started: set[int] = set()  # groups, at least once
        self.failing = failing  # samples that fail, the first ones
        self.failing_share = failing_share  # of the samples of first attempts
        self.num_failed = 0
        self.reward_of: Callable[[int, int], Reward] = lambda number, sample: reward(
            [1.0, float(not self.useful[number]), 1.0][sample]
        )
        self.scored_together: list[list[int]] = []  # prompts of each unit
        prompts = [Prompt(number, "", np.array([1], dtype=np.int32)) for number in range(len(useful))]
        order, self.step = EpochOrder(len(prompts), [0], shuffle=False), 0
        self.prompts, resumed = PromptStream(prompts, order), NEW_RUN
        if after is not None:
            self.step, before = after.step, after.orchestrator
            self.prompts = PromptStream(prompts, order, cursor=after.prompts.cursor, pending=before.pending_positions())
            kept = before.finished(self.step)
            kept.sort(key=lambda each: each[1].rollout.summaries[0].policy_version)
            resumed = Resumed(
                [
                    (position, replace(group, rollout=replace(group.rollout, group_id=number)))
                    for number, (position, group) in enumerate(kept)
                ],
                [min(s.policy_version for s in group.rollout.summaries) for _, group in kept],
                before.ledger(self.step),
            )
        self.background = Background()
        workers: Any = self
        self.engines = {index: Engine(self, index) for index in range(engines)}
        self.queue: Any = BatchingQueue(2, self._score, self.background, weight=len)
        self.sampler = sampler_of(self.config, workers, workers.queue)
        self.queue_of_references: Any = BatchingQueue(2, self._refer, self.background, weight=lambda _: 1)
        calls: Any = type("Calls", (), {"background": self.background, "occupancy": Occupancy()})
        queue = self.queue_of_references if reference else None
        self.orchestrator: Orchestrator = orchestrator_of(
            self.config, self.step, calls, self.sampler, queue, self.prompts, resumed
        )

    def lose(self, engine: int, why: str) -> None:
        """Nobody dies here."""
        raise AssertionError(why)

    def batches(self, count: int = 1) -> list[StepBatch]:
        """Return the batches of the first steps."""

        async def main() -> list[StepBatch]:
            return [await self.orchestrator.next_batch(self.step + step) for step in range(1, count + 1)]

        return asyncio.run(self.background.supervise(main()))

    def cut_off(self, num_steps: int, num_turns: int) -> list[StepBatch]:
        """Return the batches of so many steps, and go on with the next one for some turns of the event loop."""

        async def main() -> list[StepBatch]:
            batches = []
            for _ in range(num_steps):
                batches.append(await self.orchestrator.next_batch(self.step + 1))
                self.step += 1
            following = asyncio.ensure_future(self.orchestrator.next_batch(self.step + 1))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            following.cancel()
            await asyncio.wait([following])
            return batches

        return asyncio.run(self.background.supervise(main()))

    def batch(self) -> StepBatch:
        """Return the first step's batch."""
        (batch,) = self.batches()
        return batch

    def evaluated(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[ScoredGroup]:
        """Sample prompts outside training."""
        work = self.sampler.sample_prompts(prompts, sampling, policy_version=0)
        return asyncio.run(self.background.supervise(work))

    async def _score(self, worker: int, units: list[ScoringUnit]) -> list[UnitScores]:
        for _ in range(self.chance.randint(0, 5)):
            await asyncio.sleep(0)
        self.scored_together += [[unit.prompt.index] * len(unit) for unit in units]
        return [
            (
                [
                    Reward(
                        (given := self.reward_of(unit.prompt.index, sample.number)).total,
                        given.parts,
                        given.outcome,
                        TextRef([f"{unit.prompt.index}, {sample.number}"], 0),
                    )
                    for sample in unit.samples
                ],
                {"logged": 1.0},
            )
            for unit in units
        ]

    async def _refer(self, worker: int, groups: list[RolloutGroup]) -> list[ReferenceScores]:
        await asyncio.sleep(0)
        return [ReferenceScores(f"reference of {group.group_id}", [0.5]) for group in groups]
