"""One prompt's way through an engine and the scoring workers, in training and in evaluation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rlsys.errors import DeadlineError, SampleError, WorkerDiedError, WorkerError
from rlsys.orchestrator.router import EVALUATION, RESTART, Lease, Router
from rlsys.runtime.background import cancel
from rlsys.types import Prompt, Reward, RolloutGroup, Sample, Sampling, ScoredGroup, ScoringUnit, UnitScores

# Attempts in a row to sample a group that give no response, on whichever engine has room; then the run ends.
MAX_ATTEMPTS = 3
# Streams of random numbers of evaluation prompts begin here, clear of those of training groups.
EVALUATION_STREAM = 2**32


class Engine(Protocol):
    """An engine as the scheduler sees it."""

    name: str

    @property
    def num_running(self) -> int:
        """Number of requested trajectories that are not delivered yet."""

    def sample(
        self,
        prompt: Prompt,
        sampling_params: Sequence[Sampling],
        *,
        stream: int,
        policy_version: int,
        done: Collection[int] = (),
    ) -> AbstractAsyncContextManager[AsyncIterator[list[Sample]]]:
        """Sample one group but for the responses `done`; yields its trajectories as they finish.

        On exit, those that still run are cancelled.

        Raises:
            SampleError: the engine could not sample one of them.
            WorkerDiedError: the engine is gone.
        """


class Scoring(Protocol):
    """The queue in front of the scoring workers."""

    def put(self, item: ScoringUnit) -> asyncio.Future[UnitScores]:
        """Score a unit; the future holds one reward per sample, and means of what reward functions logged."""

    @property
    def is_idle(self) -> bool:
        """Whether a worker has nothing to do."""

    @property
    def num_waiting(self) -> int:
        """Number of units that wait for a worker."""


@dataclass
class _Group:
    """What is there of a group, from all attempts to sample it."""

    num_samples: int
    samples: dict[int, Sample] = field(default_factory=dict)
    scores: list[tuple[ScoringUnit, asyncio.Future[UnitScores]]] = field(default_factory=list)

    @property
    def num_missing(self) -> int:
        """Number of responses that are still to be sampled."""
        return self.num_samples - len(self.samples)


class GroupSampler:
    """The sampling and scoring of groups; a trajectory is scored as it finishes, or its group as a whole.

    Token arrays stay in the object store: the driver sees summaries, rewards and references.
    """

    def __init__(
        self,
        engines: Mapping[int, Engine],
        scoring: Scoring,
        router: Router,
        *,
        lose: Callable[[int, str], None],
        whole_groups: bool,
        deadline_s: float,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        """Sample on `engines`, with their room in `router`.

        Args:
            engines: by the numbers that the router gives; another takes the place of one that was lost.
            scoring: takes units of trajectories.
            router: knows the load of each engine.
            lose: takes an engine that is gone out of service, and hears why.
            whole_groups: a group's trajectories are scored in one call.
            deadline_s: for one group of an evaluation, sampled and scored.
            max_attempts: how often a group is sampled before its failure ends the run.
        """
        self.router = router
        self.scoring = scoring
        self.step = 0  # the training step, as reward functions see it; the orchestrator sets it
        self.num_sampling = 0  # groups that engines sample now
        self.num_scoring = 0  # groups that are sampled and wait for rewards
        self.num_restarted = 0
        self.num_delivered = 0  # responses that are finished, and units that are scored
        self.last_sample_at = self.last_score_at = 0.0  # time.perf_counter()
        self._engines = engines
        self._lose = lose
        self._whole_groups = whole_groups
        self._deadline_s = deadline_s
        self._max_attempts = max_attempts

    async def sample_group(
        self,
        prompt: Prompt,
        sampling_params: Sequence[Sampling],
        *,
        group_id: int,
        stream: int,
        start: Callable[[], int],
        lease: Lease | None = None,
    ) -> ScoredGroup:
        """Sample and score one prompt; a failed attempt is repeated, on any engine, for what it has not sampled.

        What it has sampled is kept, and the group counts as of the policy version under which that was begun.

        Args:
            prompt: The prompt to sample from.
            sampling_params: How to sample; a second entry is the greedy response for a baseline.
            group_id: The group's number.
            stream: The number that seeds its responses with `rollout.seeded`, the same however the run was interrupted.
            start: Called when an attempt starts from nothing or ends with nothing; returns the policy version to
                sample under.
            lease: Room that is already reserved for the first attempt.

        Raises:
            WorkerError: `max_attempts` in a row gave no response.
            WorkerDiedError: No engine is left.
        """
        group = _Group(sum(sampling.samples_per_prompt for sampling in sampling_params))
        failures = version = 0
        while True:
            lease = lease or await self.router.reserve(group.num_missing, (RESTART, group_id))
            engine, before = self._engines[lease.engine], group.num_missing
            version = version if group.samples else start()
            try:
                await self._attempt(engine, prompt, sampling_params, stream, version, lease, group)
            # Only what another engine may do better is caught; any other error ends the run.
            except SampleError as error:
                failure = f"{engine.name}: {error}"
            except WorkerDiedError as error:
                failure = str(error)
                if self._engines[lease.engine] is engine:  # else another has taken its place already
                    self._lose(lease.engine, failure)
            else:
                # The lease has ended with the attempt: a group that waits for its rewards holds no room on an engine.
                return await self._scored(prompt, sampling_params, group_id, group)
            lease = None
            self.num_restarted += 1
            failures = failures + 1 if group.num_missing == before else 0
            if failures == self._max_attempts:
                raise WorkerError(
                    f"group {group_id}: {failures} attempts in a row gave no response. Last failure: {failure}"
                )
            if not group.samples:
                # Register the new policy version now, not only when the next attempt starts: a step that is due sooner
                # need not wait for this group any more.
                start()

    async def sample_prompts(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, policy_version: int
    ) -> list[ScoredGroup]:
        """Sample and score prompts outside training, in order.

        Raises:
            DeadlineError: No group finished within `deadline_s`.
        """

        async def one(index: int, prompt: Prompt) -> ScoredGroup:
            stream = EVALUATION_STREAM + index
            lease = await self.router.reserve(sampling.samples_per_prompt, (EVALUATION, index))
            return await self.sample_group(
                prompt, [sampling], group_id=stream, stream=stream, start=lambda: policy_version, lease=lease
            )

        tasks = [asyncio.ensure_future(one(index, prompt)) for index, prompt in enumerate(prompts)]
        pending = set(tasks)
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=self._deadline_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise DeadlineError(self.timeout_message("evaluation", self._deadline_s))
                # Of all of them, not only of the first: what nobody asks for is printed when the loop ends.
                failures = [error for task in done if (error := task.exception()) is not None]
                if failures:
                    raise failures[0]
            return [task.result() for task in tasks]
        finally:
            await cancel(pending)  # they use the engines on their way out, so these must still be there

    def timeout_message(self, what: str, deadline_s: float) -> str:
        """Return the message of a missed deadline, which names the workers that have not answered."""
        busy = [engine for engine in self._engines.values() if engine.num_running]
        running = [f"{engine.name} ({engine.num_running} responses)" for engine in busy]
        if not self.router.load:
            running = ["engines (all were lost, and none is back in service yet)"]
        if not running and not self.scoring.is_idle:
            running = ["the scoring workers"]
        others = "the reference workers (engines and scoring workers have nothing to do)"
        return f"{what}: no answer within {deadline_s:g} s from {', '.join(running) or others}"

    async def _attempt(
        self,
        engine: Engine,
        prompt: Prompt,
        sampling_params: Sequence[Sampling],
        stream: int,
        policy_version: int,
        lease: Lease,
        group: _Group,
    ) -> None:
        """Sample what is missing of the group; its trajectories go to the scoring workers as they finish."""

        def score(together: Sequence[Sample]) -> None:
            unit = ScoringUnit(prompt, tuple(together), self.step)
            group.scores.append((unit, self.scoring.put(unit)))

        def take(delivered: Sequence[Sample]) -> None:
            self.num_delivered += len(delivered)
            lease.release(len(delivered))  # at once: another group may start while this one's longest response runs
            self.last_sample_at = time.perf_counter()
            group.samples.update((sample.number, sample) for sample in delivered)
            if not self._whole_groups:
                score(delivered)

        with lease, self._counted("num_sampling"):
            # Each attempt has the group's stream: a seeded response does not depend on how often it was tried, or
            # where.
            sampling = engine.sample(
                prompt, sampling_params, stream=stream, policy_version=policy_version, done=group.samples.keys()
            )
            async with sampling as finished:
                async for delivered in finished:
                    take(delivered)
        if self._whole_groups:
            score([group.samples[number] for number in sorted(group.samples)])

    async def _scored(
        self,
        prompt: Prompt,
        sampling_params: Sequence[Sampling],
        group_id: int,
        group: _Group,
    ) -> ScoredGroup:
        """Wait for the rewards and assemble the group in the order of its samples."""
        rewards: dict[int, Reward] = {}
        logged: dict[str, list[float]] = {}
        with self._counted("num_scoring"):
            for unit, future in group.scores:
                given, notes = await future
                self.num_delivered += 1
                rewards |= {sample.number: reward for sample, reward in zip(unit.samples, given, strict=True)}
                for name, value in notes.items():
                    logged.setdefault(name, []).append(value)
        self.last_score_at = time.perf_counter()
        size = sampling_params[0].samples_per_prompt
        ordered = [group.samples[number] for number in range(size)]
        rollout = RolloutGroup(
            group_id,
            prompt,
            tuple(sample.trajectory for sample in ordered),
            tuple(sample.summary for sample in ordered),
        )
        return ScoredGroup(
            rollout,
            tuple(rewards[number] for number in range(size)),
            # The greedy response is numbered after the group's own. Only its reward is kept.
            baseline=rewards[size] if len(sampling_params) > 1 else None,
            logged={name: sum(values) / len(values) for name, values in logged.items()},
        )

    @contextmanager
    def _counted(self, depth: str) -> Iterator[None]:
        """Count a group in one of the depths that metrics show."""
        setattr(self, depth, getattr(self, depth) + 1)
        try:
            yield
        finally:
            setattr(self, depth, getattr(self, depth) - 1)
