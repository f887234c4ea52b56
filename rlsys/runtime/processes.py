"""The end of processes: nothing that a run started is left running, however the run ended.

- Every process of a run carries a tag in its environment, and a guardian process sweeps the tagged ones.
- A child that calls `exit_with_parent` is killed by the kernel when its parent ends.
- A process that calls `adopt_orphans` waits for descendants whose own parents ended before them.

`python -m rlsys.runtime.processes TAG PID FOLDER KEPT` is the guardian of the driver PID. It outlives the driver by one
sweep, and removes what the driver's local Rays have left in FOLDER. It wakes when its pipe from the driver closes,
however the driver ended, and kills what still carries the tag. A signal that the driver receives reaches it as a byte
on the same pipe at once, even while the driver is in a library's C++ code and cannot act on it; a driver that has not
ended some seconds later is killed too. A driver that must first save its work calls `Guardian.wait_on` again and again
meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

TAG = "RLSYS_RUN_TAG"  # the environment variable that holds a run's tag
GRACE_S = 2.0  # between SIGTERM and SIGKILL
SIGNAL_GRACE_S = 6.0  # how long a driver that received a signal may take to end by itself
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a polite request, a terminal that is gone
# Bytes that no signal's number is: the driver received a signal, and still does what must be done first; it has started
# processes that may hide their tag, as Ray's agents do, whose title is written over their environment; it closes the
# pipe itself, and still needs what it has started for later Rays.
AT_WORK, LOOK, CLOSE = 0, 255, 254
# Options of Linux's prctl, from <linux/prctl.h>.
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_STARTER = ThreadPoolExecutor(1, thread_name_prefix="start-process")  # see start_process


def start_process(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process, with options of `subprocess.Popen`, from a thread that lives as long as this process.

    The kernel ends a child that called `exit_with_parent` with the *thread* that started it; a thread of a pool that
    shrinks would take the child with it.
    """

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, **options)

    return _STARTER.submit(start).result()


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a session, with everything in its process group, and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def exit_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, even while it computes in native code.

    Linux only. The parent is the thread that started this process: it must use `start_process`, or a thread that stays.
    """
    parent = os.getppid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parents end, so that it can wait for them.

    Otherwise they go to the container's first process, which in many containers waits for nobody, and stay in the
    process table.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def cpu_seconds() -> float:
    """Return the processor time that this process and its living descendants have used, in seconds."""
    used = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used += times.user + times.system
    return used


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def find_tagged(tag: str, kept: Collection[int] = ()) -> list[psutil.Process]:
    """Return this user's processes on this host that carry the tag, without those `kept`, this one and its parents."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents()), *kept}
    found = []
    for process in psutil.process_iter():
        if process.pid not in spared and _tag_of(process) == tag:
            found.append(process)
    return found


def sweep(
    tag: str, *, grace_s: float = GRACE_S, known: Sequence[psutil.Process] = (), kept: Collection[int] = ()
) -> int:
    """End every tagged process and those `known`, by SIGTERM and after `grace_s` by SIGKILL; return their number.

    Those `kept`, by process id, are left alone.
    """

    def find() -> list[psutil.Process]:
        hidden = (process for process in known if process.pid not in kept and _lives(process))
        return [*{*find_tagged(tag, kept), *hidden}]

    first = find()
    ended = {process.pid for process in first}
    for process in first:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    deadline = time.monotonic() + grace_s
    # Look again each time: a process may have started another before it ended. Give up five seconds after the first
    # SIGKILL: what is left then is stuck in the kernel, where no signal reaches it.
    while (left := find()) and time.monotonic() < deadline + 5.0:
        ended.update(process.pid for process in left)
        if time.monotonic() >= deadline:
            _kill(left)
        time.sleep(0.05)
    return len(ended)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


class Guardian:
    """The driver's side of its guardian process.

    It tags this process and everything that it starts from now on. `close` ends all of them but this process, and so
    does this process's death.
    """

    def __init__(self, ray_folder: Path, tag: str | None = None, kept: Collection[int] = ()) -> None:
        """Start the guardian.

        Args:
            ray_folder: the folder of Ray's sessions.
            tag: that of processes that were started before the guardian.
            kept: ids of processes that `close` leaves alone; this process's death ends them too.
        """
        self.tag = tag or uuid.uuid4().hex
        read_end, self._write_end = os.pipe()
        environment = {key: value for key, value in os.environ.items() if key != TAG}
        # In a session of its own, so that Ctrl-C in the terminal does not reach it; untagged, so that it does not sweep
        # itself.
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "rlsys.runtime.processes"),
                *(self.tag, str(os.getpid()), str(ray_folder), ",".join(map(str, kept))),
            ],
            stdin=read_end,
            start_new_session=True,
            env=environment,
        )
        os.close(read_end)
        os.environ[TAG] = self.tag
        os.set_blocking(self._write_end, False)  # required by set_wakeup_fd: a signal must not wait for the pipe
        self._previous_fd: int | None = None
        if threading.current_thread() is threading.main_thread():
            # Python's signal handling writes the number of each signal to this pipe, in C and at once.
            self._previous_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)

    def wait_on(self) -> None:
        """Give this process another `SIGNAL_GRACE_S` from now on, if it received a signal."""
        with contextlib.suppress(BlockingIOError):  # a full pipe holds enough of these
            os.write(self._write_end, bytes([AT_WORK]))

    def look(self) -> None:
        """Let the guardian remember everything that this process has started until now."""
        os.write(self._write_end, bytes([LOOK]))

    def close(self) -> None:
        """Let the guardian sweep now, and wait for it."""
        os.environ.pop(TAG, None)
        if self._previous_fd is not None:
            signal.set_wakeup_fd(self._previous_fd)
        with contextlib.suppress(OSError):  # the guardian is gone, and keeps nothing from ending in order
            os.write(self._write_end, bytes([CLOSE]))
        os.close(self._write_end)
        self._process.wait(timeout=30)  # a sweep takes at most about GRACE_S + 5 s


def guard(tag: str, driver: int, pipe: int, kept: Collection[int] = ()) -> None:
    """Wait until the pipe closes, or `SIGNAL_GRACE_S` after an ending signal or a later `AT_WORK`; then sweep.

    Args:
        tag: the tag of the run.
        driver: the driver's process id; it is killed if it received a signal and has not ended in time.
        pipe: the reading end of the pipe from the driver.
        kept: ids of processes to leave alone when the driver closes the pipe itself.
    """
    deadline: float | None = None
    is_closed = False
    known: list[psutil.Process] = []
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([pipe], [], [], left)
        if not ready:
            with contextlib.suppress(ProcessLookupError):
                os.kill(driver, signal.SIGKILL)
            # Shorter: the time before has served as grace, and all should have ended ten seconds after the signal.
            sweep(tag, grace_s=0.5, known=known)
            return
        received = os.read(pipe, 64)
        if not received:
            sweep(tag, known=known, kept=kept if is_closed else ())
            return
        is_closed = is_closed or CLOSE in received
        if LOOK in received:
            known += _started_by(driver, tag)
        is_ending = any(number in ENDING_SIGNALS for number in received)
        if is_ending if deadline is None else AT_WORK in received:
            deadline = time.monotonic() + SIGNAL_GRACE_S


def _started_by(driver: int, tag: str) -> list[psutil.Process]:
    """Return what a process has started, but for this one and for what carries another run's tag."""
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(driver).children(recursive=True)
        return [process for process in started if process.pid != os.getpid() and _tag_of(process) in (None, tag)]
    return []


def _tag_of(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(TAG)
    return None


def remove_sessions(folder: Path, driver: int) -> None:
    """Remove the sessions of the local Rays that a driver has started; Ray names them by its process id."""
    for session in folder.glob(f"session_*_{driver}"):
        shutil.rmtree(session, ignore_errors=True)
    latest = folder / "session_latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink(missing_ok=True)


if __name__ == "__main__":
    guard(sys.argv[1], int(sys.argv[2]), sys.stdin.fileno(), [int(pid) for pid in sys.argv[4].split(",") if pid])
    remove_sessions(Path(sys.argv[3]), int(sys.argv[2]))
