"""The engine's thread between the event loop and vLLM's core: order, pauses, cancelled requests, failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm import SamplingParams
from vllm.v1.core.sched.interface import PauseState

from rlsys.errors import WorkerError
from rlsys.rollout.engine.core import Engine, _shut_down
from rlsys.rollout.trajectory import Response

DEADLINE_S = 60.0


class Core:
    """In the place of vLLM's core: a request takes as many steps as its prompt has tokens; one step is run ahead."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=100), parallel_config=SimpleNamespace(world_size=1)
        )
        self.scheduler = self
        self.salt = "0"
        self.left: dict[str, int] = {}
        self.batch_queue: list[str] = []  # steps that were scheduled ahead, and have no results yet
        self.paused = PauseState.UNPAUSED
        self.log: list[Any] = []
        self.threads: set[str] = set()
        self.may_step = threading.Event()
        self.may_step.set()
        self.fails = False

    @property
    def requests(self) -> dict[str, int]:
        return self.left

    def has_requests(self) -> bool:
        return bool(self.left) and self.paused is PauseState.UNPAUSED

    def step_fn(self) -> tuple[dict[int, Any] | None, bool]:
        self.threads.add(threading.current_thread().name)
        assert self.may_step.wait(DEADLINE_S)
        if self.fails:
            raise ValueError("the model broke")
        if self.has_requests() and not self.batch_queue:
            self.batch_queue.append("ahead")
            return None, True
        self.batch_queue.clear()
        self.log.append("step")
        self.left = {name: steps - 1 for name, steps in self.left.items()}
        done = [name for name, steps in self.left.items() if steps <= 0]
        for name in done:
            del self.left[name]
        return {0: SimpleNamespace(outputs=[response(name) for name in done])}, True

    def post_step(self, was_executed: bool) -> None:
        assert was_executed

    def preprocess_add_request(self, request: Any) -> tuple[Any, int]:
        if request.prompt_token_ids == [13]:
            raise ValueError("unlucky")
        return request, 0

    def add_request(self, request: Any, _: int) -> None:
        self.log.append(("add", request.request_id, request.cache_salt))
        self.left[request.request_id] = len(request.prompt_token_ids)

    def abort_requests(self, names: list[str]) -> None:
        if self.fails:
            raise ValueError("the model broke")
        self.log.append(("abort", *names))
        for name in names:
            self.left.pop(name, None)

    def set_pause_state(self, state: PauseState) -> None:
        self.paused = state

    def pause_scheduler(self, mode: str, clear_cache: bool) -> None:
        self.log.append(("paused", mode, clear_cache))

    def resume_scheduler(self) -> None:
        self.paused = PauseState.UNPAUSED

    def collective_rpc(self, method: str, timeout: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        self.threads.add(threading.current_thread().name)
        self.log.append(method)
        return [(method, args, kwargs)]

    def shutdown(self) -> None:
        self.log.append("shutdown")


def response(name: str) -> Response:
    return Response(name, np.array([1]), np.array([0.0]), ((0, 1),), "stop")


def drive(scenario: Callable[[Engine, Core], Awaitable[None]]) -> Core:
    core = Core()

    async def whole() -> None:
        engine = Engine()
        engine._core = core
        await asyncio.wait_for(scenario(engine, core), DEADLINE_S)
        await asyncio.wait_for(engine.stop(), DEADLINE_S)
        engine._thread.join(DEADLINE_S)
        assert not engine._thread.is_alive()

    asyncio.run(whole())
    assert core.log[-1] == "leave_broadcasts"
    return core


def test_an_engine_with_processes_of_its_own_ends_them() -> None:
    core: Any = Core()
    core.vllm_config.parallel_config.world_size = 2
    _shut_down(core)
    assert core.log == ["shutdown"]


def generate(engine: Engine, name: str, steps: int) -> Awaitable[Response]:
    return engine.generate(name, [1] * steps, SamplingParams())


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_requests_end_each_in_its_time_on_one_thread() -> None:
    async def scenario(engine: Engine, core: Core) -> None:
        found = await asyncio.gather(*(generate(engine, name, steps) for name, steps in (("a", 3), ("b", 1), ("c", 2))))
        assert [answer.request_id for answer in found] == ["a", "b", "c"]
        assert await engine.collective_rpc("hello", 1, two=2) == [("hello", (1,), {"two": 2})]

    core = drive(scenario)
    assert core.threads == {"engine"}
    assert [entry for entry in core.log if entry[0] == "add"] == [("add", name, "0") for name in "abc"]


def test_a_pause_waits_for_steps_that_were_scheduled_ahead_and_keeps_requests() -> None:
    async def scenario(engine: Engine, core: Core) -> None:
        core.may_step.clear()
        answer = asyncio.ensure_future(generate(engine, "a", 3))
        await eventually(lambda: bool(core.threads))  # inside its first step
        pausing = asyncio.ensure_future(engine.pause(clear_cache=True))
        await asyncio.sleep(0)
        core.may_step.set()
        await pausing
        assert core.batch_queue == []
        assert core.log[-1] == ("paused", "keep", True)
        assert (core.left, answer.done()) == ({"a": core.left["a"]}, False)
        await engine.collective_rpc("update_weights")  # a paused engine still takes calls
        await engine.resume()
        assert (await answer).request_id == "a"

    drive(scenario)


def test_a_cancelled_request_is_aborted_and_the_others_go_on() -> None:
    async def scenario(engine: Engine, core: Core) -> None:
        core.may_step.clear()
        cancelled, other = (asyncio.ensure_future(generate(engine, name, 5)) for name in "ab")
        await eventually(lambda: bool(core.threads))
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        core.may_step.set()
        assert (await other).request_id == "b"
        assert ("abort", "a") in core.log
        assert engine._open == {}

    drive(scenario)


def test_what_concerns_one_request_fails_only_that_one() -> None:
    async def scenario(engine: Engine, core: Core) -> None:
        with pytest.raises(WorkerError, match="a prompt of 100 tokens leaves no room in an engine's 100 tokens"):
            await generate(engine, "long", 100)
        with pytest.raises(WorkerError, match="the engine failed: ValueError: unlucky"):
            await engine.generate("odd", [13], SamplingParams())
        assert (await generate(engine, "b", 2)).request_id == "b"

    drive(scenario)


def test_a_failed_step_ends_everything_that_waits_and_that_comes_later() -> None:
    async def scenario(engine: Engine, core: Core) -> None:
        core.may_step.clear()
        answers = [asyncio.ensure_future(generate(engine, name, 5)) for name in "ab"]
        await eventually(lambda: bool(core.threads))
        pausing = asyncio.ensure_future(engine.pause(clear_cache=False))
        core.fails = True
        core.may_step.set()
        for waiting in (*answers, pausing):
            with pytest.raises(WorkerError, match=r"the engine (has )?failed: ValueError: the model broke"):
                await waiting
        for late in (generate(engine, "c", 1), engine.collective_rpc("arrival")):
            with pytest.raises(WorkerError, match="the engine has failed: ValueError: the model broke"):
                await late

    drive(scenario)


def test_an_abort_that_fails_ends_the_engine_too_and_nobody_waits_for_its_thread() -> None:
    async def scenario(engine: Engine, core: Core) -> None:
        core.may_step.clear()
        cancelled, other = (asyncio.ensure_future(generate(engine, name, 5)) for name in "ab")
        await eventually(lambda: bool(core.threads))
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        core.fails = True
        core.may_step.set()
        with pytest.raises(WorkerError, match="the engine failed: ValueError: the model broke"):
            await other
        with pytest.raises(WorkerError, match="the engine has failed"):
            await engine.collective_rpc("arrival")

    drive(scenario)


def test_an_idle_engine_proves_its_life_by_a_token_and_a_busy_one_by_a_step() -> None:
    async def scenario(engine: Engine, core: Core) -> None:
        await engine.prove_life()
        assert [entry for entry in core.log if entry[0] == "add"] == [("add", "life-1", "0")]
        core.may_step.clear()
        answer = asyncio.ensure_future(generate(engine, "a", 50))
        await eventually(lambda: "a" in core.left)
        proof = asyncio.ensure_future(engine.prove_life())
        await asyncio.wait([proof], timeout=0.2)
        assert not proof.done()  # inside a step that does not end
        core.may_step.set()
        await proof
        await answer
        assert [entry[1] for entry in core.log if entry[0] == "add"] == ["life-1", "a"]

    drive(scenario)


def test_an_idle_engine_that_hangs_proves_nothing() -> None:
    async def scenario(engine: Engine, core: Core) -> None:
        core.may_step.clear()
        proof = asyncio.ensure_future(engine.prove_life())
        await asyncio.wait([proof], timeout=0.2)
        assert not proof.done()
        core.may_step.set()
        await proof

    drive(scenario)


def test_neither_a_pause_nor_the_end_of_the_last_request_is_taken_for_standing_still() -> None:
    async def scenario(engine: Engine, core: Core) -> None:
        await engine.pause(clear_cache=False)
        await engine.prove_life()
        answer = asyncio.ensure_future(generate(engine, "a", 5))
        await eventually(lambda: "a" in core.left)
        engine._is_paused = False  # busy, and no step will come, as between an abort and the next request
        proof = asyncio.ensure_future(engine.prove_life())
        await asyncio.sleep(0)
        assert not proof.done()
        answer.cancel()
        await proof
        assert "step" not in core.log

    drive(scenario)
