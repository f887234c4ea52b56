"""What happens around a failed attempt: who is woken, what is cancelled, and which error the user sees."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from rlsys.data.order import EpochOrder
from rlsys.data.stream import PromptStream
from rlsys.errors import DeadlineError, SampleError, WorkerDiedError, WorkerError
from rlsys.orchestrator.admission import Admission
from rlsys.orchestrator.orchestrator import GroupRule, Orchestrator
from rlsys.orchestrator.router import Router
from rlsys.orchestrator.sampling import GroupSampler
from rlsys.runtime.background import Background
from rlsys.runtime.batching import BatchingQueue
from rlsys.types import Prompt, Sample, Sampling, ScoringUnit, TrajectoryRef, UnitScores
from tests.unit.records import reward, summary
from tests.unit.virtual_time import run_virtual

PROMPTS = [Prompt(number, "", np.array([1], dtype=np.int32)) for number in range(20)]
PLAN = [Sampling(1.0, 4, 1)]
Attempt = Callable[[int, int], Any]  # (group, number of the attempt) -> coroutine that ends when the response is there


class Engine:
    """Gives each group one response, when the attempt's coroutine has ended."""

    name = "rollout/0"
    num_running = 1

    def __init__(self, attempt: Attempt) -> None:
        self.tries: dict[int, int] = {}
        self.num_left = 0  # groups whose sampling has ended, in whatever way
        self._attempt = attempt

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
        number = self.tries[stream] = self.tries.get(stream, 0) + 1

        async def finished() -> AsyncIterator[list[Sample]]:
            await self._attempt(stream, number)
            yield [Sample(0, summary(3, version=policy_version, engine=0), TrajectoryRef("chunk", 0))]

        try:
            yield finished()
        finally:
            self.num_left += 1


def built(
    background: Background,
    engine: Engine,
    *,
    ahead: int = 0,
    score: Any = None,
    deadline_s: float = 1e4,
    prompts: PromptStream | None = None,
    prompts_per_step: int = 1,
) -> tuple[Orchestrator, GroupSampler]:
    async def scores(_: int, units: Sequence[ScoringUnit]) -> list[UnitScores]:
        return [([reward(1.0)] * len(unit), {}) for unit in units]

    queue: Any = BatchingQueue(1, score or scores, background, weight=len)
    router = Router([100])

    def lose(number: int, why: str) -> None:  # as with cluster.max_restarts=0
        router.remove(number)
        router.close(why)

    sampler = GroupSampler({0: engine}, queue, router, lose=lose, whole_groups=False, deadline_s=deadline_s)
    prompts = prompts or PromptStream(PROMPTS, EpochOrder(len(PROMPTS), [0], shuffle=False))
    rule = GroupRule(prompts_per_step, keeps_equal_rewards=True, compares_parts=False, on_error="mask")
    admission = Admission(prompts_per_step, ahead)
    orchestrator = Orchestrator(background, sampler, admission, prompts, PLAN, rule, None, deadline_s=deadline_s)
    return orchestrator, sampler


def test_a_step_that_waited_for_a_group_goes_on_when_its_attempt_fails() -> None:
    """Group 1 started under version 0 and is due; when it starts again under version 1 the step takes group 2."""

    async def attempt(group: int, number: int) -> None:
        if group == 1 and number == 1:
            await asyncio.sleep(50.0)
            raise SampleError("out of memory")
        await asyncio.sleep(300.0 if group == 1 else 10.0)

    async def main() -> tuple[list[int], float]:
        background = Background()
        orchestrator, _ = built(background, Engine(attempt), ahead=1)

        async def steps() -> list[int]:
            return [group.group_id for step in (1, 2) for group in (await orchestrator.next_batch(step)).groups]

        return await background.supervise(steps()), asyncio.get_running_loop().time()

    taken, at_s = run_virtual(main())
    assert taken == [0, 2]
    assert at_s == pytest.approx(50.0, abs=1.0)


def test_random_streams_follow_the_prompts_positions_also_in_a_resumed_run() -> None:
    async def attempt(stream: int, number: int) -> None:
        pass

    async def main() -> list[int]:
        background = Background()
        prompts = PromptStream(PROMPTS, EpochOrder(len(PROMPTS), [0], shuffle=False), cursor=40, pending=[37])
        engine = Engine(attempt)
        orchestrator, _ = built(background, engine, prompts=prompts)

        async def steps() -> None:
            for step in (1, 2):
                await orchestrator.next_batch(step)

        await background.supervise(steps())
        return list(engine.tries)

    assert run_virtual(main()) == [37, 40]


def test_the_death_of_the_last_engine_has_its_name_and_cause() -> None:
    async def attempt(group: int, number: int) -> None:
        raise WorkerDiedError("rollout: rollout/0 is gone: out of memory")

    async def main() -> None:
        background = Background()
        orchestrator, _ = built(background, Engine(attempt))
        with pytest.raises(WorkerDiedError, match=r"no engine is left .* rollout/0 is gone: out of memory"):
            await background.supervise(orchestrator.next_batch(1))

    run_virtual(main())


def test_a_scoring_worker_that_dies_ends_the_run_while_engines_still_sample() -> None:
    async def attempt(group: int, number: int) -> None:
        await asyncio.sleep(1.0 if group == 0 else 1e9)

    async def dies(_: int, units: Sequence[ScoringUnit]) -> list[UnitScores]:
        raise WorkerDiedError("scoring: scoring/0 is gone")

    async def main() -> float:
        background = Background()
        orchestrator, _ = built(background, Engine(attempt), score=dies, ahead=1)
        with pytest.raises(WorkerDiedError, match="scoring/0 is gone"):
            await background.supervise(orchestrator.next_batch(1))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(1.0, abs=0.5)


def test_slow_work_that_goes_on_is_not_cut_off_and_work_that_stands_still_is() -> None:
    """Ten responses of four minutes each, under a deadline of five; the scoring of another takes a while too."""
    stands_still = False

    async def attempt(group: int, number: int) -> None:
        await asyncio.sleep(1e9 if stands_still else 240.0 * (group % 10 + 1))

    async def score(_: int, units: Sequence[ScoringUnit]) -> list[UnitScores]:
        await asyncio.sleep(290.0)
        return [([reward(1.0)] * len(unit), {}) for unit in units]

    async def main() -> None:
        nonlocal stands_still
        background = Background()
        orchestrator, _ = built(background, Engine(attempt), score=score, deadline_s=300.0, prompts_per_step=10)

        async def steps() -> None:
            nonlocal stands_still
            assert len((await orchestrator.next_batch(1)).groups) == 10
            assert asyncio.get_running_loop().time() > 2400.0
            stands_still, started = True, asyncio.get_running_loop().time()
            with pytest.raises(DeadlineError, match=r"rollout: no answer within 300 s from rollout/0"):
                await orchestrator.next_batch(2)
            assert asyncio.get_running_loop().time() - started < 1000.0

        await background.supervise(steps())

    run_virtual(main())


def test_an_evaluation_that_is_late_leaves_nothing_running_on_the_engines() -> None:
    """Requests are cancelled before the error is raised: afterwards the engines may be gone."""

    async def attempt(group: int, number: int) -> None:
        await asyncio.sleep(1e9)

    async def main() -> None:
        background, engine = Background(), Engine(attempt)
        _, sampler = built(background, engine, deadline_s=5.0)
        with pytest.raises(DeadlineError, match=r"evaluation: no answer within 5 s from rollout/0"):
            await sampler.sample_prompts(PROMPTS[:3], PLAN[0], policy_version=0)
        assert engine.num_left == 3

    run_virtual(main())


def test_an_evaluation_whose_groups_fail_together_says_so_once() -> None:
    """One call scores the responses of several prompts: its failure is each one's, and nobody is left unasked."""

    async def attempt(group: int, number: int) -> None:
        await asyncio.sleep(1.0)

    async def fails(_: int, units: Sequence[ScoringUnit]) -> list[UnitScores]:
        raise WorkerError("returned 1 value for 3 completions")

    unasked: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unasked.append(context))
        background = Background()
        _, sampler = built(background, Engine(attempt), score=fails)
        with pytest.raises(WorkerError, match="returned 1 value"):
            await background.supervise(sampler.sample_prompts(PROMPTS[:3], PLAN[0], policy_version=0))
        gc.collect()  # tasks complain when they are collected

    run_virtual(main())
    assert unasked == []
