"""Which of several failures a gathering raises; calls are coroutines here. Real Ray calls: tests/integration."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray

from rlsys.errors import DeadlineError, WorkerDiedError, WorkerError
from rlsys.runtime.calls import Calls
from tests.unit.virtual_time import run_virtual


async def fail(after_s: float, error: Exception) -> None:
    await asyncio.sleep(after_s)
    raise error


def gather(calls: dict[str, Any]) -> Any:
    return Calls().gather(calls, what="broadcast", deadline_s=100.0)


def test_the_failure_that_came_first_is_raised_whatever_its_name() -> None:
    async def main() -> None:
        calls = {"rollout/0": fail(0.3, WorkerError("connection closed")), "learner/0": fail(0.1, WorkerError("cause"))}
        with pytest.raises(WorkerError, match="cause"):
            await gather(calls)

    run_virtual(main())


def test_a_death_explains_a_failure_before_it() -> None:
    async def main() -> None:
        calls = {"a": fail(0.1, WorkerError("connection closed")), "b": fail(1.0, WorkerDiedError("b is gone"))}
        with pytest.raises(WorkerDiedError, match="b is gone"):
            await gather(calls)

    run_virtual(main())


def test_the_end_of_a_dead_worker_s_log_is_in_its_error(tmp_path: Path) -> None:
    (tmp_path / "rollout-0.log").write_text("first\nterminate called after throwing std::bad_alloc\n")

    class Gone:
        def __await__(self) -> Any:
            raise ray.exceptions.ActorDiedError()
            yield

    async def main() -> None:
        calls = Calls(tmp_path)
        for is_work in (True, False):
            with pytest.raises(WorkerDiedError) as caught:
                await calls.result(Gone(), who="rollout/0", what="sampling", deadline_s=10.0, is_work=is_work)
            assert "sampling: rollout/0 is gone" in str(caught.value)
            assert str(caught.value).endswith(
                f"The end of {tmp_path}/rollout-0.log:\n  first\n  terminate called after throwing std::bad_alloc"
            )

    run_virtual(main())


def test_the_late_are_named() -> None:
    async def main() -> None:
        with pytest.raises(DeadlineError, match=r"broadcast: no answer within 100 s from a, c"):
            await gather({"c": asyncio.sleep(1e9), "b": asyncio.sleep(1), "a": asyncio.sleep(1e9)})

    run_virtual(main())
