"""Policy and critic in one checkpoint: training goes on once both have begun, and a failure leaves no writer behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rlsys.config.compose import load_config
from rlsys.errors import NoRoomError, WorkerDiedError
from rlsys.learner.learners import Learners
from rlsys.metrics.step import StageClock
from rlsys.types import Coefficients
from tests.unit.virtual_time import run_virtual


class Model:
    """A group of ranks that copies and writes for some seconds, and perhaps fails then."""

    def __init__(self, copy_s: float, write_s: float, error: Exception | None = None) -> None:
        self._seconds = (copy_s, write_s)
        self._error = error
        self.ended_at = 0.0

    async def save(self, folder: str, on_begun: Callable[[], None] | None) -> None:
        """Take the seconds; `on_begun` is called between them."""
        await asyncio.sleep(self._seconds[0])
        if on_begun is not None:
            on_begun()
        await asyncio.sleep(self._seconds[1])
        self.ended_at = asyncio.get_running_loop().time()
        if self._error is not None:
            raise self._error


def begun_at(*models: Any) -> list[float]:
    """Save, and return when training could go on."""
    learners = Learners(load_config([]), StageClock(), *models, Coefficients(0.0, 0.0))
    found: list[float] = []

    async def save() -> None:
        await learners.save("folder", lambda: found.append(asyncio.get_running_loop().time()))

    run_virtual(save())
    return found


def test_training_goes_on_once_both_have_begun() -> None:
    assert begun_at(Model(1.0, 9.0), Model(3.0, 2.0)) == [3.0]
    assert begun_at(Model(1.0, 9.0), None) == [1.0]


def test_neither_writes_any_more_when_a_failure_is_raised() -> None:
    """Or the folder would be cleared under the other's files."""
    critic = Model(3.0, 20.0, WorkerDiedError("critic/0 is gone"))
    with pytest.raises(WorkerDiedError, match="critic/0"):  # it explains the other
        begun_at(Model(1.0, 1.0, NoRoomError("learner/0: no room")), critic)
    assert critic.ended_at == 23.0
