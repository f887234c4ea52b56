"""The driver's side of an engine: one call per poll, trajectories to the groups that asked for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rlsys.errors import SampleError, WorkerDiedError, WorkerError
from rlsys.rollout.engine_client import EngineClient
from rlsys.runtime.calls import Calls
from rlsys.types import Finished, GroupRequest, Prompt, Sampling
from tests.unit.records import summary

PROMPT = Prompt(0, "", np.array([1, 2], dtype=np.int32))
PLAN = [Sampling(1.0, 8, 2)]


class Method:
    """A method of a worker's handle: `remote` gives a future."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call

    def options(self, **_: Any) -> Method:
        return self


class Worker:
    """A worker whose polls the test answers."""

    def __init__(self) -> None:
        self.requests: list[list[GroupRequest]] = []
        self.versions: list[int] = []
        self.cancelled: list[int] = []
        self.polls: list[asyncio.Future[Sequence[Finished]]] = []
        self.submit, self.finished, self.cancel = Method(self._submit), Method(self._finished), Method(self._cancel)

    def _done(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    def _submit(self, requests: list[GroupRequest], version: int) -> asyncio.Future[Any]:
        self.requests.append(requests)
        self.versions.append(version)
        return self._done()

    def _finished(self, max_wait_s: float, linger_s: float) -> tuple[asyncio.Future[Any], str]:
        self.polls.append(asyncio.get_running_loop().create_future())
        return self.polls[-1], f"chunk {len(self.polls)}"

    def _cancel(self, request_ids: list[int]) -> asyncio.Future[Any]:
        self.cancelled += request_ids
        return self._done()

    async def answer(self, *finished: Finished) -> None:
        """Answer the open poll, once it is there."""
        await turns()
        self.polls[-1].set_result(finished)
        await turns()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def done(request: int, sample: int) -> Finished:
    return Finished(request, sample, summary(3))


def run(scenario: Callable[[EngineClient, Worker, Calls], Awaitable[None]]) -> None:
    async def main() -> None:
        worker, calls = Worker(), Calls()
        client = EngineClient("rollout/0", worker, calls, linger_s=0.1)
        await calls.background.supervise(scenario(client, worker, calls))  # type: ignore[arg-type]

    asyncio.run(main())


async def sampled(client: EngineClient, stream: int = 0) -> list[list[tuple[int, Any]]]:
    """Sample one group; returns the numbers and chunks of its trajectories as they were handed over."""
    async with client.sample(PROMPT, PLAN, stream=stream, policy_version=3) as finished:
        return [[(sample.number, sample.trajectory.chunk) for sample in part] async for part in finished]


def test_groups_that_start_together_are_one_call_and_one_poll_serves_all() -> None:
    async def scenario(client: EngineClient, worker: Worker, calls: Calls) -> None:
        tasks = [asyncio.ensure_future(sampled(client, stream)) for stream in (7, 8)]
        await worker.answer(done(1, 1), done(0, 0), done(1, 0))
        assert [[request.stream for request in requests] for requests in worker.requests] == [[7, 8]]
        assert worker.versions == [3]
        assert client.num_running == 1
        assert await tasks[1] == [[(1, "chunk 1"), (0, "chunk 1")]]
        await worker.answer(done(0, 1))
        assert await tasks[0] == [[(0, "chunk 1")], [(1, "chunk 2")]]
        await turns()
        assert len(worker.polls) == 2  # none while nothing runs
        assert (client.num_running, worker.cancelled) == (0, [])
        assert "idle/rollout" in calls.occupancy.take()

    run(scenario)


def test_a_poll_is_made_again_for_later_groups() -> None:
    async def scenario(client: EngineClient, worker: Worker, calls: Calls) -> None:
        for request in range(2):
            task = asyncio.ensure_future(sampled(client))
            await worker.answer()  # with nothing in it: nothing had finished for a while
            await worker.answer(done(request, 0), done(request, 1))
            await task
        assert [len(requests) for requests in worker.requests] == [1, 1]

    run(scenario)


def test_a_sample_that_failed_fails_its_group_and_cancels_the_rest_of_it() -> None:
    async def scenario(client: EngineClient, worker: Worker, calls: Calls) -> None:
        failing, other = asyncio.ensure_future(sampled(client)), asyncio.ensure_future(sampled(client))
        await worker.answer(done(0, 0), Finished(0, 1, None, "out of memory"))
        with pytest.raises(SampleError, match="sample 1: out of memory"):
            await failing
        assert worker.cancelled == [0]
        assert client.num_running == 2
        await worker.answer(done(0, 1), done(1, 0), done(1, 1))  # what comes late is nobody's
        assert [number for part in await other for number, _ in part] == [0, 1]

    run(scenario)


def test_a_worker_s_failure_is_every_open_group_s() -> None:
    async def scenario(client: EngineClient, worker: Worker, calls: Calls) -> None:
        tasks = [asyncio.ensure_future(sampled(client)) for _ in range(2)]
        await turns()
        worker.polls[0].set_exception(WorkerDiedError("rollout: rollout/0 is gone"))
        for task in tasks:
            with pytest.raises(WorkerDiedError, match="rollout/0 is gone"):
                await task

    run(scenario)


def test_a_request_that_is_refused_is_an_error_of_its_group() -> None:
    async def scenario(client: EngineClient, worker: Worker, calls: Calls) -> None:
        refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        refused.set_exception(WorkerError("rollout/0 holds policy version 2, but the request expects version 3"))
        worker.submit = Method(lambda *_: refused)
        with pytest.raises(WorkerError, match="expects version 3"):
            await sampled(client)

    run(scenario)


def test_what_was_finished_before_a_failure_is_handed_over_first() -> None:
    async def scenario(client: EngineClient, worker: Worker, calls: Calls) -> None:
        taken: list[int] = []

        async def take() -> None:
            async with client.sample(PROMPT, PLAN, stream=0, policy_version=3) as finished:
                async for part in finished:
                    taken.extend(sample.number for sample in part)

        task = asyncio.ensure_future(take())
        await worker.answer(done(0, 1), Finished(0, 0, None, "out of memory"))
        with pytest.raises(SampleError, match="out of memory"):
            await task
        assert taken == [1]

    run(scenario)


def test_only_what_an_earlier_attempt_has_not_sampled_is_asked_for() -> None:
    async def scenario(client: EngineClient, worker: Worker, calls: Calls) -> None:
        async def take() -> list[int]:
            async with client.sample(PROMPT, PLAN, stream=0, policy_version=3, done=[0]) as finished:
                return [sample.number async for part in finished for sample in part]

        task = asyncio.ensure_future(take())
        await turns()
        ((request,),) = worker.requests
        assert list(request.missing) == [1]
        assert client.num_running == 1
        await worker.answer(done(0, 1))
        assert await task == [1]
        assert client.num_running == 0

    run(scenario)
