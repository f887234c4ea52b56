"""Who waits for answers gets them in time, and in one go where they come close together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from rlsys.rollout.finished_queue import FinishedQueue
from rlsys.runtime.spans import SpanRecorder
from rlsys.types import Finished

LONG_S = 30.0


def failed(request_id: int) -> Finished:
    return Finished(request_id, 0, None, "made up")


def run(scenario: Callable[[FinishedQueue], Coroutine[Any, Any, None]]) -> float:
    """Seconds that it took; two requests run at first."""

    async def whole() -> None:
        queue = FinishedQueue(SpanRecorder())
        queue.started()
        queue.started()
        await scenario(queue)

    started = time.monotonic()
    asyncio.run(whole())
    return time.monotonic() - started


def requests(results: list[Any]) -> list[int]:
    return [finished.request_id for finished, _ in results]


def test_nothing_comes_in_time() -> None:
    async def scenario(queue: FinishedQueue) -> None:
        assert await queue.take(0.05, 0.0) == []

    assert run(scenario) >= 0.05


def test_results_that_come_close_together_are_taken_together() -> None:
    async def scenario(queue: FinishedQueue) -> None:
        waiting = asyncio.create_task(queue.take(LONG_S, 0.3))
        await asyncio.sleep(0.01)
        queue.put(failed(1), None)
        await asyncio.sleep(0.01)
        queue.put(failed(2), None)
        assert requests(await waiting) == [1, 2]
        assert await queue.take(0.0, 0.0) == []  # each is given once

    assert 0.3 <= run(scenario) < LONG_S / 2


def test_one_that_has_waited_long_enough_goes_at_once() -> None:
    async def scenario(queue: FinishedQueue) -> None:
        queue.put(failed(1), None)
        await asyncio.sleep(0.05)
        assert requests(await queue.take(LONG_S, 0.04)) == [1]

    assert run(scenario) < LONG_S / 2


def test_nobody_lingers_when_nothing_runs_any_more() -> None:
    async def scenario(queue: FinishedQueue) -> None:
        waiting = asyncio.create_task(queue.take(LONG_S, LONG_S))
        for request in (1, 2):
            await asyncio.sleep(0.01)
            queue.put(failed(request), None)
            queue.ended()
        assert requests(await waiting) == [1, 2]

    assert run(scenario) < LONG_S / 2


def test_the_longest_wait_ends_lingering() -> None:
    async def scenario(queue: FinishedQueue) -> None:
        queue.put(failed(1), None)
        assert requests(await queue.take(0.05, LONG_S)) == [1]

    assert run(scenario) < LONG_S / 2


def test_results_of_cancelled_requests_are_dropped() -> None:
    async def scenario(queue: FinishedQueue) -> None:
        for request in (1, 2, 1):
            queue.put(failed(request), None)
        queue.drop({1})
        assert requests(await queue.take(LONG_S, 0.0)) == [2]

    assert run(scenario) < LONG_S / 2
