"""An engine that stands still is told from one that is slow, by what it computes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rlsys.errors import DeadlineError
from rlsys.rollout.liveness import ANSWER_S, GPU_STEP_S, LIMIT_S, fault_of
from tests.unit.virtual_time import run_virtual


async def wait(ref: asyncio.Future[Any], *, deadline_s: float) -> Any:
    done, _ = await asyncio.wait([ref], timeout=deadline_s)
    if not done:
        raise DeadlineError("no answer")
    return ref.result()


def found(
    progress_after_s: float | None,
    cpu_share: float = 1.0,
    answer_s: float = 0.0,
    on_gpu: bool = False,
) -> tuple[str | None, float]:
    """Return the fault of an engine, and the seconds until it was found; None: no progress, ever."""

    def after(delay: float | None, value: Callable[[], Any]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if delay is not None:
            loop.call_later(delay, lambda: future.done() or future.set_result(value()))
        return future

    async def main() -> tuple[str | None, float]:
        loop = asyncio.get_running_loop()
        fault = await fault_of(
            lambda: after(progress_after_s, lambda: None),
            lambda: after(answer_s, lambda: cpu_share * loop.time()),
            wait,
            on_gpu=on_gpu,
        )
        return fault, loop.time()

    return run_virtual(main())


def test_progress_is_no_fault_however_late_while_it_computes() -> None:
    assert found(0.1) == (None, pytest.approx(0.1))
    assert found(600.0, cpu_share=1.0) == (None, pytest.approx(600.0))
    assert found(60.0, cpu_share=0.05) == (None, pytest.approx(60.0))  # one of twenty on its core


def test_a_stopped_process_does_not_answer() -> None:
    fault, after_s = found(None, answer_s=1e9)
    assert fault is not None
    assert "stopped" in fault
    assert after_s == pytest.approx(LIMIT_S + ANSWER_S)


def test_one_that_waits_for_a_lock_computes_nothing() -> None:
    fault, after_s = found(None, cpu_share=0.001)
    assert fault == "it has made no step for 10 s, and computes nothing"
    assert after_s == pytest.approx(2 * LIMIT_S)


def test_a_kernel_that_hangs_keeps_its_core_busy() -> None:
    fault, after_s = found(None, cpu_share=1.0, on_gpu=True)
    assert fault is not None
    assert after_s == pytest.approx(GPU_STEP_S)
