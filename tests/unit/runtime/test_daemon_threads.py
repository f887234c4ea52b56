"""Calls that never return hold up neither their caller nor the end of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlsys.runtime.daemon_threads import DaemonThreads

HANGING = """
import asyncio, time
from rlsys.runtime.daemon_threads import DaemonThreads

async def main():
    try:
        async with asyncio.timeout(0.1):
            await asyncio.get_running_loop().run_in_executor(DaemonThreads("hanging"), time.sleep, 1000)
    except TimeoutError:
        print("given up")

asyncio.run(main())
"""


def test_results_and_errors_are_the_future_s() -> None:
    threads = DaemonThreads("some")
    assert threads.submit(int, "7", base=8).result(timeout=60) == 7
    with pytest.raises(ValueError, match="invalid literal"):
        threads.submit(int, "seven").result(timeout=60)


def test_a_call_that_hangs_keeps_no_process_alive() -> None:
    """Threads of asyncio's own pool would: leaving the loop waits for them."""
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "given up\n", "")
