"""One program in namespaces of its own, by bubblewrap (https://github.com/containers/bubblewrap).

It sees read-only system directories, an empty directory in memory, no network, no other process, no variable of ours.
Limits that the kernel keeps for each process are set inside; what all of its processes use together is watched from
outside. The end of the namespace's first process ends everything in it, at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import cache

import psutil

from rlsys.errors import ConfigError
from rlsys.sandbox.command import filter_bytes, sandbox_command
from rlsys.sandbox.program import Limits, Program, ProgramOutcome, Result

WATCH_S = 0.05
"""Between two looks at what a program uses: a fork bomb gets a few hundred processes far, not further."""
TOOLS = ("bwrap", "timeout", "prlimit")
OWN_PROCESSES = 3
"""bubblewrap's, and the shell's between two commands."""
PR_SET_CHILD_SUBREAPER = 36
KEPT = ("PATH", "RLSYS_RUN_TAG")
"""Of our environment, for bubblewrap alone: where it is, and what the run's guardian knows its processes by."""


def run(program: Program, limits: Limits) -> Result:
    """Run to the end, or to the first limit reached. Never raises for what a program does.

    Raises ValueError for several processes where nothing would keep them from becoming many.
    """
    if limits.processes > 1 and os.geteuid() == 0:
        raise ValueError("a sandbox of several processes is not for root: the kernel does not limit root's processes")
    with contextlib.ExitStack() as stack:

        def held(content: bytes) -> int:
            return stack.enter_context(_memory_file(content))

        files = {name: held(text.encode()) for name, text in program.files.items()}
        filter_fd = held(filter_bytes(may_fork=limits.processes > 1))
        status_fd, stdin_fd = held(b""), held(program.stdin.encode())
        process = subprocess.Popen(
            sandbox_command(program, limits, files, filter_fd, status_fd),
            stdin=stdin_fd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            pass_fds=[*files.values(), filter_fd, status_fd],
            start_new_session=True,
        )
        stack.callback(_end, process)
        result = _watched(process, limits)
        first = _first_process(os.pread(status_fd, 4096, 0))
        if first is None:
            return Result("refused", None, result.stdout, result.stderr, result.seconds)
        for left in (-process.pid, first):  # its group, and the namespace's: ours only where orphans are adopted
            with contextlib.suppress(ChildProcessError):
                os.waitpid(left, 0)
        return result


def adopt_orphans() -> None:
    """Let this process wait for what its sandboxes leave behind: bubblewrap ends before the namespace's first process,
    which otherwise stays in the process table where nobody else waits for orphans (as in many containers)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def check() -> None:
    """Raise ConfigError where programs cannot be run in a sandbox on this machine, with the reason."""
    problem = obstacle()
    if problem is not None:
        raise ConfigError(
            f"programs cannot be run safely here: {problem}. Sandboxes need bubblewrap and libseccomp (Debian: apt-get "
            "install bubblewrap libseccomp2) and user namespaces (in a container they must be allowed)"
        )


@cache
def obstacle() -> str | None:
    """Why there can be no sandbox on this machine; None where there can."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            return f"'{tool}' is not installed"
    try:
        filter_bytes(may_fork=False)
    except (ImportError, OSError, RuntimeError) as error:
        return f"no filter of system calls: {error}"
    result = run(Program(["true"]), Limits())
    return None if result.outcome == "ok" else f"{result.outcome}: {result.stderr.strip()[-300:]}"


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """A descriptor of a file that holds `content` and has no name."""
    descriptor = os.memfd_create("sandbox")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


class _Streams:
    """What a program writes, up to a limit each."""

    def __init__(self, process: subprocess.Popen[bytes], limit: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._limit = limit
        self._text = {process.stdout: bytearray(), process.stderr: bytearray()}
        self._selector = selectors.DefaultSelector()
        for stream in self._text:
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ)

    def read(self, wait_s: float) -> None:
        """Take what is there, waiting at most `wait_s` for it."""
        for key, _ in self._selector.select(wait_s):
            stream = key.fileobj
            part = stream.read(65536)  # type: ignore[union-attr]
            if part == b"":
                self._selector.unregister(stream)
            elif part is not None:
                self._text[stream] += part  # type: ignore[index]

    @property
    def is_open(self) -> bool:
        return bool(self._selector.get_map())

    @property
    def is_full(self) -> bool:
        return any(len(text) > self._limit for text in self._text.values())

    def texts(self) -> tuple[str, str]:
        """Both streams, cut at the limit."""
        self._selector.close()
        out, err = (bytes(text[: self._limit]).decode(errors="replace") for text in self._text.values())
        return out, err


def _watched(process: subprocess.Popen[bytes], limits: Limits) -> Result:
    """Wait for the end, and bring it about where a limit is reached."""
    started = time.monotonic()
    streams = _Streams(process, limits.output_kib * 1024)
    reached: ProgramOutcome | None = None
    next_look = started + WATCH_S
    while reached is None and (process.poll() is None or streams.is_open):
        now = time.monotonic()
        if now - started > limits.wall_s:
            reached = "timeout"
        elif streams.is_full:
            reached = "output"
        elif now >= next_look:
            reached, next_look = _over(process.pid, limits), now + WATCH_S
        if streams.is_open:
            streams.read(min(WATCH_S, max(0.0, started + limits.wall_s - now)))
        else:
            time.sleep(0.005)
    if reached is not None:
        _end(process)
    status = process.wait()
    out, err = streams.texts()
    seconds = time.monotonic() - started
    outcome = reached or _outcome(status, err, had_time=seconds < limits.cpu_s)
    return Result(outcome, None if reached else status, out, err, seconds)


def _over(pid: int, limits: Limits) -> ProgramOutcome | None:
    """What all processes of the sandbox use too much of together. The kernel bounds their number already: looking at
    them would be no match for a program that may start them without end."""
    resident, count = 0, 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                resident += child.memory_info().rss
                count += child.num_threads()
    if count > limits.processes + limits.threads + OWN_PROCESSES:
        return "processes"
    return "memory" if resident > limits.memory_mib * 2**20 else None


def _outcome(status: int, stderr: str, *, had_time: bool) -> ProgramOutcome:
    """Of a program that ended by itself; a signal is reported as 128 and its number. At the limit of CPU time the
    kernel sends SIGXCPU, and SIGKILL to one that does not mind."""
    if status == 0:
        return "ok"
    last = stderr.rstrip().rpartition("\n")[2]
    if last.startswith("MemoryError"):
        return "memory"
    if status - 128 == signal.SIGXCPU or (status - 128 == signal.SIGKILL and not had_time):
        return "timeout"
    return "signal" if status > 128 else "exit"


def _first_process(report: bytes) -> int | None:
    """The namespace's first, as bubblewrap reports it; None of a sandbox that was not made."""
    for line in report.splitlines():
        found = json.loads(line).get("child-pid")
        if found is not None:
            return int(found)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it with everything in it; nothing to do for one that has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
