"""Nothing is left running: every process of a run carries a tag in its environment, and a guardian sweeps it.

`python -m rlsys.runtime.processes TAG PID` is the guardian of driver PID; it outlives the driver by one sweep. It
wakes when its pipe from the driver closes, however the driver ended, and kills what still carries the tag. A signal
that the driver received reaches it as a byte on the same pipe at once, even while the driver sits in a library's C++
code and cannot act on it; a driver that has not ended some seconds later is ended too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid

import psutil

TAG = "RLSYS_RUN_TAG"
GRACE_S = 2.0
SIGNAL_GRACE_S = 6.0
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def tagged(tag: str) -> list[psutil.Process]:
    """Processes of this user on this host whose environment carries the tag, without this process and its parents."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in spared and process.environ().get(TAG) == tag:
                found.append(process)
    return found


def sweep(tag: str, *, grace_s: float = GRACE_S) -> int:
    """End every tagged process: SIGTERM, then SIGKILL after `grace_s`, until none is left. Returns how many."""
    first = tagged(tag)
    ended = {process.pid for process in first}
    for process in first:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    deadline = time.monotonic() + grace_s
    while (left := tagged(tag)) and time.monotonic() < deadline + 5.0:
        ended.update(process.pid for process in left)
        if time.monotonic() >= deadline:
            _kill(left)
        time.sleep(0.05)
    return len(ended)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


class Guardian:
    """Tags this process and everything it starts from now on; `close` (or this process's death) ends all of them."""

    def __init__(self) -> None:
        self.tag = uuid.uuid4().hex
        read_end, self._write_end = os.pipe()
        environment = {key: value for key, value in os.environ.items() if key != TAG}
        # A session of its own: Ctrl-C in the terminal must not reach it. Untagged: it must not sweep itself.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlsys.runtime.processes", self.tag, str(os.getpid())],
            stdin=read_end,
            start_new_session=True,
            env=environment,
        )
        os.close(read_end)
        os.environ[TAG] = self.tag
        os.set_blocking(self._write_end, False)
        self._previous_fd: int | None = None
        if threading.current_thread() is threading.main_thread():
            self._previous_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)

    def close(self) -> None:
        """Let the guardian sweep now, and wait for it."""
        os.environ.pop(TAG, None)
        if self._previous_fd is not None:
            signal.set_wakeup_fd(self._previous_fd)
        os.close(self._write_end)
        self._process.wait(timeout=30)


def guard(tag: str, driver: int, pipe: int) -> None:
    """Wait for the end of the pipe, or for a signal byte and then `SIGNAL_GRACE_S`; then sweep."""
    deadline: float | None = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([pipe], [], [], left)
        if not ready:
            with contextlib.suppress(ProcessLookupError):
                os.kill(driver, signal.SIGKILL)
            sweep(tag, grace_s=0.5)
            return
        received = os.read(pipe, 64)
        if not received:
            sweep(tag)
            return
        if deadline is None and any(number in ENDING_SIGNALS for number in received):
            deadline = time.monotonic() + SIGNAL_GRACE_S


if __name__ == "__main__":
    guard(sys.argv[1], int(sys.argv[2]), sys.stdin.fileno())
