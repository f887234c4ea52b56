"""Background tasks end the run when they fail, with the error that explains the others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rlsys.errors import ConfigError, DeadlineError, WorkerDiedError, WorkerError
from rlsys.runtime.background import SETTLE_S, Background
from tests.unit.virtual_time import run_virtual


async def fail(error: BaseException, after_s: float) -> None:
    await asyncio.sleep(after_s)
    raise error


async def result(value: Any, after_s: float) -> Any:
    await asyncio.sleep(after_s)
    return value


def test_the_result_of_the_main_task_and_an_end_for_all_others() -> None:
    async def main() -> None:
        background = Background()
        task = background.start(asyncio.sleep(1e9))
        assert await background.supervise(result("done", 1.0)) == "done"
        assert task.cancelled()

    run_virtual(main())


def test_a_background_failure_ends_the_main_task() -> None:
    async def main() -> None:
        background, was_cancelled = Background(), []

        async def training() -> None:
            try:
                await asyncio.sleep(1e9)
            except asyncio.CancelledError:
                was_cancelled.append(True)
                raise

        background.start(fail(ConfigError("bad"), 2.0))
        with pytest.raises(ConfigError, match="bad"):
            await background.supervise(training())
        assert was_cancelled

    run_virtual(main())


@pytest.mark.parametrize("first", [WorkerError("connection closed"), DeadlineError("late")])
@pytest.mark.parametrize("who", ["main", "background"])
def test_a_death_that_is_noticed_later_explains_the_first_failure(first: Exception, who: str) -> None:
    async def main() -> None:
        background = Background()
        background.start(fail(WorkerDiedError("rollout/1 is gone"), 1.0 + SETTLE_S / 2))
        if who == "background":
            background.start(fail(first, 1.0))
        with pytest.raises(WorkerDiedError, match="rollout/1 is gone"):
            await background.supervise(fail(first, 1.0) if who == "main" else asyncio.sleep(1e9))

    run_virtual(main())


def test_a_failure_that_no_death_explains_is_raised_at_once() -> None:
    async def main() -> float:
        background = Background()
        background.start(asyncio.sleep(1e9))
        with pytest.raises(ConfigError):
            await background.supervise(fail(ConfigError("bad"), 1.0))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(1.0, abs=0.1)


def test_cancelling_from_outside_cancels_everything() -> None:
    async def main() -> None:
        background = Background()
        task = background.start(asyncio.sleep(1e9))
        whole = asyncio.ensure_future(background.supervise(asyncio.sleep(1e9)))
        await asyncio.sleep(1.0)
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole
        assert task.cancelled()

    run_virtual(main())


def test_what_a_cancelled_task_starts_on_its_way_out_ends_too() -> None:
    async def main() -> None:
        background, late = Background(), []

        async def restless() -> None:
            try:
                await asyncio.sleep(1e9)
            finally:
                late.append(background.start(asyncio.sleep(1e9)))

        background.start(restless())
        await background.supervise(asyncio.sleep(1.0))
        assert [task.cancelled() for task in late] == [True]

    run_virtual(main())
