"""Runs are started from plain programs and from notebooks, whose cells run inside an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from rlsys.errors import RlsysError
from rlsys.runtime.interrupt import run_until_interrupted
from rlsys.runtime.processes import ENDING_SIGNALS


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


@pytest.mark.parametrize("number", ENDING_SIGNALS)
@pytest.mark.parametrize("in_loop", [False, True], ids=["program", "notebook"])
def test_a_signal_lets_the_run_end_in_order(number: signal.Signals, in_loop: bool) -> None:
    events = []

    async def run(before: object) -> None:
        while signal.getsignal(number) is before:  # the handlers of a notebook are set by another thread
            await asyncio.sleep(0.001)
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)  # stopping workers takes some turns of the loop
            events.append("stopped")

    def check() -> None:
        if signal.getsignal(number) is signal.SIG_IGN:  # of tests that were started by `nohup`
            signal.signal(number, signal.SIG_DFL)
        before = signal.getsignal(number)  # an event loop has handlers of its own
        with pytest.raises(KeyboardInterrupt):
            run_until_interrupted(run(before))
        assert events == ["stopped"]
        assert signal.getsignal(number) is before

    async def cell() -> None:
        check()

    if in_loop:
        asyncio.run(cell())
    else:
        check()


NOTEBOOK = """
import asyncio, ctypes, os, signal
from pathlib import Path
from rlsys.runtime.interrupt import run_until_interrupted

def is_caught():
    mask = Path("/proc/self/status").read_text().partition("SigCgt:")[2].split()[0]
    return int(mask, 16) >> (signal.SIGTERM - 1) & 1

async def main():
    ctypes.CDLL(None).signal(signal.SIGTERM, 0)  # in C and in another thread, as Ray does: the process would die
    while not is_caught():
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(60)

async def cell():
    try:
        run_until_interrupted(main())
    except KeyboardInterrupt:
        print("in order")

asyncio.run(cell())
"""


def test_a_handler_that_a_library_replaced_in_c_is_set_again() -> None:
    ended = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "in order\n"), ended.stderr


LOADS_CPP = """
import enum, importlib.util, os, pathlib, signal, sys, time
from rlsys.runtime.interrupt import raise_interrupt

def interrupt(frame, event, _):
    if frame.f_code.co_filename == enum.__file__:  # called by C++ that makes enumerations while it is loaded
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, raise_interrupt)
file = pathlib.Path(importlib.util.find_spec("triton").origin).parent / "_C" / "libtriton.so"
spec = importlib.util.spec_from_file_location("libtriton", file)
sys.setprofile(interrupt)
try:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_while_native_code_is_loaded_interrupts_a_moment_later() -> None:
    """There an exception that C++ does not expect aborts the process, as with triton, which vLLM imports."""
    result = subprocess.run([sys.executable, "-c", LOADS_CPP], capture_output=True, text=True, check=False, timeout=100)
    assert (result.returncode, result.stdout) == (0, "interrupted\n"), result.stderr
