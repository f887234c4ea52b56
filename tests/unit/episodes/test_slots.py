"""Environments in processes: what fails, hangs or dies there ends its episode alone, and slots come back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlsys.environments.entry import EnvironmentSpec
from rlsys.episodes.slots import Slot, Slots, StepError, StepTimeoutError, UnreadableError
from rlsys.errors import WorkerError

ENVS = str(Path(__file__).parents[1] / "environments" / "envs.py")


@contextlib.asynccontextmanager
async def opened(num_slots: int = 4, name: str = "Told", **options: Any) -> AsyncIterator[Slots]:
    slots = Slots(EnvironmentSpec.of({"name": f"{ENVS}:{name}", **options}, []), num_slots)
    await slots.start()
    try:
        yield slots
    finally:
        slots.close()


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def said(slot: Slot, text: str, deadline_s: float = 30.0) -> dict[str, Any]:
    return await slot.call("step", {"role": "assistant", "content": text}, deadline_s)


async def an_episode(slots: Slots) -> float:
    async with slots.one() as slot:
        await slot.call("start", {"prompt": []}, 30.0)
        reward: float = (await said(slot, "end 3"))["reward"]
        await slot.call("close", {"asks_reward": False}, 30.0)
    return reward


@in_loop
async def test_episodes_are_played_one_after_the_other_and_at_the_same_time() -> None:
    async with opened(greeting="hi") as slots:
        async with slots.one() as slot:
            opening = await slot.call("start", {"prompt": []}, 30.0)
            assert opening == {"messages": [{"role": "user", "content": "hi"}], "tools": None}
            assert (await said(slot, "x"))["messages"] == [{"role": "user", "content": "you said x"}]
        assert await asyncio.gather(*(an_episode(slots) for _ in range(12))) == [3.0] * 12
        assert slots.num_open == 0


@in_loop
async def test_a_process_serves_again_after_an_orderly_end_alone() -> None:
    async with opened(num_slots=1) as slots:
        pids = []
        for ends in (True, False, True):
            async with slots.one() as slot:
                pids.append(slot.pid)
                await slot.call("start", {"prompt": []}, 30.0)
                if ends:
                    await slot.call("close", {"asks_reward": False}, 30.0)
        assert pids[0] == pids[1] != pids[2]


@pytest.mark.parametrize(
    ("do", "error", "text"),
    [
        ("raise", StepError, "ValueError: as told"),
        ("unreadable", UnreadableError, "no word of it"),
        ("die", StepError, "process died"),
        ("hang", StepTimeoutError, "gave no answer within 0.5 s"),
    ],
)
@pytest.mark.parametrize("at", ["start", "step"])
@in_loop
async def test_a_failure_ends_its_episode_alone(do: str, error: type[Exception], text: str, at: str) -> None:
    async with opened(num_slots=2) as slots:
        async with slots.one() as healthy:
            await healthy.call("start", {"prompt": []}, 30.0)
            with pytest.raises(error, match=text):
                await fail(slots, do, at)
            assert (await said(healthy, "x"))["reward"] == 0.25
        assert [await an_episode(slots) for _ in range(4)] == [3.0] * 4


async def fail(slots: Slots, do: str, at: str) -> None:
    async with slots.one() as slot:
        is_first, deadline_s = at == "start", 0.5 if do == "hang" else 60.0
        await slot.call("start", {"prompt": [], "do": do if is_first else ""}, deadline_s if is_first else 60.0)
        await said(slot, do, deadline_s)


@pytest.mark.parametrize("name", ["Silent", "NoTurn"])
@in_loop
async def test_what_is_no_turn_is_an_error(name: str) -> None:
    async with opened(name=name) as slots, slots.one() as slot:
        await slot.call("start", {"prompt": []}, 30.0)
        if name == "Silent":  # the player's matter
            assert (await said(slot, "x"))["messages"] == []
        else:
            with pytest.raises(StepError, match="returned dict, not Turn"):
                await said(slot, "x")


@in_loop
async def test_what_an_environment_has_started_ends_with_its_episode() -> None:
    async with opened() as slots:
        async with slots.one() as slot:
            await slot.call("start", {"prompt": [], "do": "spawn"}, 30.0)
            children = psutil.Process(slot.pid).children()
            assert [child.name() for child in children] == ["sleep"]
        _wait_for_end(children)


@in_loop
async def test_nothing_is_left_when_the_slots_are_closed() -> None:
    async with opened() as slots, slots.one() as slot:
        process = psutil.Process(slot.pid)
        await slot.call("start", {"prompt": []}, 30.0)
        slots.close()
        _wait_for_end([process])


@in_loop
async def test_the_process_that_is_forked_is_started_again() -> None:
    async with opened() as slots:
        assert slots.pid is not None
        psutil.Process(slots.pid).kill()
        assert await asyncio.gather(*(an_episode(slots) for _ in range(3))) == [3.0] * 3


@in_loop
async def test_what_cannot_be_loaded_says_why() -> None:
    with pytest.raises(WorkerError, match="has no function 'Nothing'"):
        async with opened(name="Nothing"):
            pass


@in_loop
async def test_a_slot_comes_back_when_its_episode_is_cancelled() -> None:
    async with opened(num_slots=1) as slots:

        async def hang() -> None:
            async with slots.one() as slot:
                await slot.call("start", {"prompt": [], "do": "hang"}, 600.0)

        task = asyncio.create_task(hang())
        while not slots.num_open:
            await asyncio.sleep(0.01)
        task.cancel()
        assert await an_episode(slots) == 3.0


def _wait_for_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    deadline = time.monotonic() + 30
    while alive and time.monotonic() < deadline:
        alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not alive
