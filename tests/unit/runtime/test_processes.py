"""Nothing is left running."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from rlsys.runtime import processes
from rlsys.runtime.processes import AT_WORK, TAG, Guardian, find_tagged, guard, sweep

OWNER = """
import subprocess, sys
from pathlib import Path
from rlsys.runtime.processes import Guardian
guardian = Guardian(Path(sys.argv[1]))
stubborn = 'trap "" TERM; echo ready; sleep 60'
children = [subprocess.Popen(["sleep", "60"]), subprocess.Popen(["bash", "-c", stubborn], stdout=subprocess.PIPE)]
children[1].stdout.readline()
print(*(child.pid for child in children), flush=True)
children[0].wait()
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def tag() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a command with a tag in its environment, or none; whatever happens, it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def starter(*command: str, tag: str | None = None) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key != TAG}
        if tag is not None:
            environment[TAG] = tag
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process

    yield starter
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ends(pid: int, timeout_s: float) -> bool:
    """Whether a process, not only a child of ours, ends in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


def stubborn(start: Start, tag: str) -> subprocess.Popen[str]:
    """A shell and its child, both deaf to SIGTERM."""
    process = start("bash", "-c", 'trap "" TERM; echo ready; sleep 60', tag=tag)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_sweep_ends_every_tagged_process_even_a_deaf_one(start: Start, tag: str) -> None:
    willing = [start("sleep", "60", tag=tag) for _ in range(2)]
    deaf = stubborn(start, tag)
    sweep(tag, grace_s=0.2)
    assert [process.wait(timeout=60) for process in willing] == [-signal.SIGTERM] * 2
    assert deaf.wait(timeout=60) == -signal.SIGKILL
    assert find_tagged(tag) == []  # the shell's own child went too


def test_the_sweep_says_how_many_it_ended(start: Start, tag: str) -> None:
    for _ in range(3):
        start("sleep", "60", tag=tag)
    assert sweep(tag, grace_s=5.0) == 3
    assert sweep(tag) == 0


def test_other_processes_are_left_alone(start: Start, tag: str) -> None:
    others = [start("sleep", "60"), start("sleep", "60", tag=f"{tag}0")]
    sweep(tag)
    assert [process.poll() for process in others] == [None, None]


def test_closing_the_guardian_ends_what_was_started_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TAG, raising=False)
    guardian = Guardian(tmp_path)
    assert os.environ[TAG] == guardian.tag
    child = subprocess.Popen(["sleep", "60"])
    try:
        guardian.wait_on()  # means nothing without a signal
        assert child.poll() is None
        guardian.close()
        assert child.wait(timeout=60) == -signal.SIGTERM
        assert TAG not in os.environ
    finally:
        child.kill()


def test_what_is_kept_outlives_the_guardian_but_not_its_owner(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str
) -> None:
    """Fork servers: a run that starts its Ray again still needs them."""
    monkeypatch.delenv(TAG, raising=False)
    kept, other = start("sleep", "600", tag=tag), start("sleep", "600", tag=tag)
    Guardian(tmp_path, tag, [kept.pid]).close()
    assert other.wait(timeout=60) == -signal.SIGTERM
    assert kept.poll() is None
    code = "import sys; from pathlib import Path; from rlsys.runtime.processes import Guardian\n"
    owner = start(sys.executable, "-c", f"{code}Guardian(Path({str(tmp_path)!r}), {tag!r}, [{kept.pid}]).wait_on()")
    owner.wait(timeout=60)
    assert kept.wait(timeout=60) == -signal.SIGTERM


def test_a_guardian_that_was_killed_keeps_nothing_from_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TAG, raising=False)
    guardian = Guardian(tmp_path)
    guardian._process.kill()
    guardian._process.wait()
    guardian.close()
    assert TAG not in os.environ


def test_the_guardian_outlives_a_killed_owner(start: Start, tmp_path: Path) -> None:
    """And removes what its Ray has left, by its process id."""
    owner = start(sys.executable, "-c", OWNER, str(tmp_path))
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    try:
        assert len(pids) == 2
        sessions = [tmp_path / f"session_2026-01-02_{number}" for number in (owner.pid, f"9{owner.pid}")]
        for session in sessions:
            (session / "sockets").mkdir(parents=True)
        (tmp_path / "session_latest").symlink_to(sessions[0])
        os.kill(owner.pid, signal.SIGKILL)  # nothing of its own can run any more
        assert all(ends(pid, timeout_s=10.0) for pid in pids)
        end = time.monotonic() + 60.0
        while sessions[0].exists() or (tmp_path / "session_latest").is_symlink():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert sessions[1].exists()  # another's
    finally:
        for pid in pids:
            if not ends(pid, timeout_s=0.0):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of the driver's pipe to its guardian."""
    ends = os.pipe()
    yield ends
    for descriptor in ends:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_a_signalled_driver_that_does_not_end_is_ended(
    monkeypatch: pytest.MonkeyPatch, start: Start, tag: str, pipe: tuple[int, int]
) -> None:
    monkeypatch.setattr(processes, "SIGNAL_GRACE_S", 0.2)
    driver, worker = stubborn(start, ""), start("sleep", "60", tag=tag)
    os.write(pipe[1], bytes([signal.SIGTERM]))
    guard(tag, driver.pid, pipe[0])
    assert driver.wait(timeout=60) == -signal.SIGKILL
    assert worker.wait(timeout=60) == -signal.SIGTERM


def test_a_signalled_driver_that_saves_its_work_is_waited_for(monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    received = iter([bytes([signal.SIGTERM]), bytes([AT_WORK]), bytes([AT_WORK]), b""])
    waits: list[Any] = []
    ended: list[str] = []

    def select_after(*arguments: Any) -> tuple[list[int], list[int], list[int]]:
        waits.append(arguments[3])
        return [0], [], []

    clock = (tick / 10 for tick in range(100))  # a tenth of a second passes between two looks at it
    monkeypatch.setattr(processes, "SIGNAL_GRACE_S", 0.2)
    monkeypatch.setattr(processes, "select", SimpleNamespace(select=select_after))
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(processes.os, "read", lambda *_: next(received))
    monkeypatch.setattr(processes, "sweep", lambda tag, known, kept: ended.append(tag))
    guard(tag, os.getpid(), 0)
    assert waits == [None, *[pytest.approx(0.1)] * 3]
    assert ended == [tag]


def test_a_driver_that_closes_its_pipe_is_not_touched(start: Start, tag: str, pipe: tuple[int, int]) -> None:
    driver, worker = start("sleep", "60"), start("sleep", "60", tag=tag)
    os.write(pipe[1], bytes([signal.SIGCHLD]))  # a child of the driver ended, nothing more
    os.close(pipe[1])
    guard(tag, driver.pid, pipe[0])
    assert worker.wait(timeout=60) == -signal.SIGTERM
    assert driver.poll() is None


CHILD = """
import os, re
from rlsys.runtime.processes import exit_with_parent
exit_with_parent()
print(os.getpid(), flush=True)
re.match(r"(a+)+$", "a" * 64 + "b")  # years in C code that holds the interpreter's lock
"""

PARENT = """
import sys, threading, time
from rlsys.runtime.processes import start_process
def start():
    start_process([sys.executable, "-c", sys.argv[1]], stdout=sys.stdout)
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(60)
"""


def test_a_child_that_cannot_be_interrupted_ends_with_its_parent(start: Start) -> None:
    parent = start(sys.executable, "-c", PARENT, CHILD)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert not ends(child, timeout_s=1.0)  # the thread that asked for it has ended, the parent has not
        os.kill(parent.pid, signal.SIGKILL)
        assert ends(child, timeout_s=10.0)
    finally:
        if not ends(child, timeout_s=0.0):
            os.kill(child, signal.SIGKILL)


ADOPTER = """
import os, subprocess
from rlsys.runtime.processes import adopt_orphans
adopt_orphans()
middle = subprocess.Popen(["bash", "-c", "sleep 0.2 & echo $!"], stdout=subprocess.PIPE, text=True)
orphan = int(middle.communicate()[0])
print(os.waitpid(orphan, 0)[0] == orphan, flush=True)  # raises ChildProcessError unless it was adopted
"""


def test_orphans_are_adopted(start: Start) -> None:
    process = start(sys.executable, "-c", ADOPTER)
    assert process.communicate(timeout=60)[0] == "True\n"


HIDDEN = """
import os, subprocess, sys
from pathlib import Path
from rlsys.runtime.processes import TAG, Guardian
guardian = Guardian(Path(sys.argv[1]))
untagged = {name: value for name, value in os.environ.items() if name != TAG}
parent = subprocess.Popen(["bash", "-c", "sleep 60 & echo $!; wait"], env=untagged, stdout=subprocess.PIPE, text=True)
child = parent.stdout.readline().strip()
another = subprocess.Popen(["sleep", "60"], env={**untagged, TAG: "another run"}, stdout=subprocess.DEVNULL)
guardian.look()
print(parent.pid, child, another.pid, flush=True)
parent.wait()
"""


def test_what_hides_its_tag_ends_too_though_its_parent_has_ended_before(start: Start, tmp_path: Path) -> None:
    """What has the tag of another run is left to that run's guardian."""
    owner = start(sys.executable, "-c", HIDDEN, str(tmp_path))
    assert owner.stdout is not None
    parent, child, another = (int(pid) for pid in owner.stdout.readline().split())
    try:
        time.sleep(0.5)  # for the guardian to look
        os.kill(parent, signal.SIGKILL)
        os.kill(owner.pid, signal.SIGKILL)
        assert ends(child, timeout_s=20.0)
        assert psutil.Process(another).status() == psutil.STATUS_SLEEPING
    finally:
        for pid in (parent, child, another):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
