"""Runs are started from plain programs and from notebooks, whose cells run inside an event loop."""

from __future__ import annotations

import asyncio

import pytest

from rlsys.errors import RlsysError
from rlsys.runtime.interrupt import run_until_interrupted


async def work() -> str:
    await asyncio.sleep(0.01)
    return "done"


async def fail() -> None:
    raise RlsysError("no")


def test_from_a_program() -> None:
    assert run_until_interrupted(work()) == "done"
    with pytest.raises(RlsysError, match="no"):
        run_until_interrupted(fail())


def test_from_within_an_event_loop() -> None:
    async def cell() -> str:
        with pytest.raises(RlsysError, match="no"):
            run_until_interrupted(fail())
        return run_until_interrupted(work())

    assert asyncio.run(cell()) == "done"
