"""Who waits for answers gets them in time, and in one go where they come close together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from rlsys.rollout.outbox import Outbox
from rlsys.runtime.spans import SpanRecorder
from rlsys.types import Finished

LONG_S = 30.0


def failed(group_id: int) -> Finished:
    return Finished(group_id, 0, 0, None, "made up")


def run(scenario: Callable[[Outbox], Coroutine[Any, Any, None]]) -> float:
    """Seconds that it took; two requests run at first."""

    async def whole() -> None:
        outbox = Outbox(SpanRecorder())
        outbox.started()
        outbox.started()
        await scenario(outbox)

    started = time.monotonic()
    asyncio.run(whole())
    return time.monotonic() - started


def groups(answers: list[Any]) -> list[int]:
    return [finished.group_id for finished, _ in answers]


def test_nothing_comes_in_time() -> None:
    async def scenario(outbox: Outbox) -> None:
        assert await outbox.take(0.05, 0.0) == []

    assert run(scenario) >= 0.05


def test_answers_that_come_close_together_are_taken_together() -> None:
    async def scenario(outbox: Outbox) -> None:
        waiting = asyncio.create_task(outbox.take(LONG_S, 0.3))
        await asyncio.sleep(0.01)
        outbox.put(failed(1), None)
        await asyncio.sleep(0.01)
        outbox.put(failed(2), None)
        assert groups(await waiting) == [1, 2]
        assert await outbox.take(0.0, 0.0) == []  # each is told once

    assert 0.3 <= run(scenario) < LONG_S / 2


def test_one_that_has_waited_long_enough_goes_at_once() -> None:
    async def scenario(outbox: Outbox) -> None:
        outbox.put(failed(1), None)
        await asyncio.sleep(0.05)
        assert groups(await outbox.take(LONG_S, 0.04)) == [1]

    assert run(scenario) < LONG_S / 2


def test_nobody_lingers_when_nothing_runs_any_more() -> None:
    async def scenario(outbox: Outbox) -> None:
        waiting = asyncio.create_task(outbox.take(LONG_S, LONG_S))
        for group in (1, 2):
            await asyncio.sleep(0.01)
            outbox.put(failed(group), None)
            outbox.ended()
        assert groups(await waiting) == [1, 2]

    assert run(scenario) < LONG_S / 2


def test_the_longest_wait_ends_lingering() -> None:
    async def scenario(outbox: Outbox) -> None:
        outbox.put(failed(1), None)
        assert groups(await outbox.take(0.05, LONG_S)) == [1]

    assert run(scenario) < LONG_S / 2


def test_answers_of_cancelled_groups_are_dropped() -> None:
    async def scenario(outbox: Outbox) -> None:
        for group in (1, 2, 1):
            outbox.put(failed(group), None)
        outbox.drop({1})
        assert groups(await outbox.take(LONG_S, 0.0)) == [2]

    assert run(scenario) < LONG_S / 2
