"""Nodes that announce their end: who moves, who cannot, and what is said."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.build.evacuation import Evacuation
from rlsys.errors import DeadlineError


class Nodes:
    """Three nodes; moves are noted, and take a turn of the loop."""

    def __init__(self) -> None:
        self.workers = {
            "a" * 56: ["rollout/0", "scoring/0", "reference/0"],
            "b" * 56: ["rollout/1", "learner/0"],
            "c" * 56: [],
        }
        self.ending: dict[str, float] | None = {}
        self.moved: list[tuple[str, int, float]] = []
        self.failure: DeadlineError | None = None
        movers = {role: partial(self._move, role) for role in ("rollout", "scoring", "reference")}
        self.evacuation = Evacuation(self, self._ending, movers, SimpleNamespace(start=self._start))  # type: ignore[arg-type]

    def on_node(self, node: str) -> list[str]:
        return self.workers[node]

    async def _ending(self) -> dict[str, float] | None:
        return self.ending

    async def _move(self, role: str, number: int, left_s: float) -> None:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.moved.append((role, number, left_s))

    def _start(self, move: Coroutine[Any, Any, None]) -> None:
        self._open.append(asyncio.ensure_future(move))

    def look(self, times: int = 1) -> None:
        async def looks() -> None:
            self._open: list[asyncio.Future[None]] = []
            for _ in range(times):
                await self.evacuation.look()
            await asyncio.gather(*self._open)

        asyncio.run(looks())


def test_what_can_move_does_so_once(caplog: pytest.LogCaptureFixture) -> None:
    nodes = Nodes()
    nodes.look()
    assert nodes.moved == []
    nodes.ending = {"a" * 56: 90.0, "c" * 56: 90.0}
    with caplog.at_level(logging.WARNING, "rlsys"):
        nodes.look(times=3)
    assert nodes.moved == [("rollout", 0, 90.0), ("scoring", 0, 90.0), ("reference", 0, 90.0)]
    assert not nodes.evacuation.holds_learners()
    assert "the node aaaaaaaa ends in 90 s, with rollout/0, scoring/0, reference/0: what can move does" in caplog.text
    assert "cccccccc" not in caplog.text


def test_learners_stay_and_are_saved_until_the_node_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    nodes = Nodes()
    nodes.ending = {"b" * 56: math.inf}
    nodes.look(times=2)
    assert nodes.moved == [("rollout", 1, math.inf)]
    assert nodes.evacuation.holds_learners()
    assert "the node bbbbbbbb ends, with rollout/1, learner/0" in caplog.text
    assert caplog.text.count("from now on every step is saved until it ends") == 1
    nodes.workers["b" * 56] = ["learner/0"]  # the engine has moved
    nodes.ending["a" * 56] = 90.0  # one without learners
    nodes.look()
    assert caplog.text.count("from now on every step is saved until it ends") == 1
    assert nodes.evacuation.holds_learners()
    nodes.ending = None  # Ray's head does not answer now
    nodes.look()
    assert nodes.evacuation.holds_learners()
    nodes.ending = {}
    nodes.look()
    assert not nodes.evacuation.holds_learners()


def test_a_worker_for_which_there_is_no_room_stays_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    nodes = Nodes()
    nodes.ending, nodes.failure = {"b" * 56: 30.0}, DeadlineError("no room within 30 s")
    nodes.look(times=2)
    assert "rollout/1 stays until its node ends, and what it has then is done again: no room" in caplog.text
