"""The run of one program in namespaces of its own, by bubblewrap (https://github.com/containers/bubblewrap).

The program sees read-only system folders, an empty working directory in memory, no network, no other processes and none
of our environment variables. The kernel enforces the limits per process; what all its processes use together is watched
from outside (`usage`). When the namespace's first process ends, the kernel ends everything in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import cache

from rlsys.errors import ConfigError
from rlsys.runtime.processes import TAG, kill_group
from rlsys.sandbox.command import filter_bytes, sandbox_command
from rlsys.sandbox.program import Limits, Program, ProgramOutcome, Result
from rlsys.sandbox.usage import Usage, look

# Seconds between two looks at what a program uses: a fork bomb starts a few hundred processes in between, not more.
WATCH_S = 0.05
TOOLS = ("bwrap", "timeout", "setsid", "prlimit")
# Variables that bubblewrap gets, but not the program: where tools are, and the tag by which the run's guardian finds
# its processes.
KEPT = ("PATH", TAG)


def run(program: Program, limits: Limits) -> Result:
    """Run a program until it ends or reaches a limit. Nothing that the program does raises an exception here.

    Raises:
        ValueError: several processes are allowed and we are root, so that nothing would limit their number.
    """
    if limits.processes > 1 and os.geteuid() == 0:
        raise ValueError(
            f"processes={limits.processes}: root may run only single-process sandboxes, because the kernel does not "
            "limit the number of root's processes; run as another user"
        )
    with contextlib.ExitStack() as stack:

        def memory_file(content: bytes) -> int:
            return stack.enter_context(_memory_file(content))

        files = {name: memory_file(text.encode()) for name, text in program.files.items()}
        filter_fd = memory_file(filter_bytes(may_fork=limits.processes > 1))
        # The report goes to a file and not into a pipe, which somebody would have to read while the program runs.
        status_fd, stdin_fd = memory_file(b""), memory_file(program.stdin.encode())
        process = subprocess.Popen(
            sandbox_command(program, limits, files, filter_fd, status_fd),
            stdin=stdin_fd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            pass_fds=[*files.values(), filter_fd, status_fd],
            start_new_session=True,  # a process group of its own, which _end kills as a whole
        )
        stack.callback(_end, process)
        result = _watched(process, limits)
        # Wait for what is left of its process group, the namespace's first process last. They are children of this
        # process only if it called `adopt_orphans`, each once its own parent has ended.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-process.pid, 0)
        if not _was_made(os.pread(status_fd, 4096, 0)):
            return Result("refused", None, result.stdout, result.stderr, result.seconds)
        return result


def check_sandbox() -> None:
    """Check that programs can be run in a sandbox on this machine. Raises ConfigError with the reason if not."""
    problem = find_obstacle()
    if problem is not None:
        raise ConfigError(
            f"programs cannot be run safely here: {problem}. Sandboxes need bubblewrap and libseccomp (Debian: apt-get "
            "install bubblewrap libseccomp2) and user namespaces (a container must allow them)"
        )


@cache
def find_obstacle() -> str | None:
    """Return why this machine cannot make sandboxes, or None if it can."""
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
    """Yield the descriptor of a nameless file in memory that holds `content`."""
    descriptor = os.memfd_create("sandbox")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)  # the child inherits the position too
        yield descriptor
    finally:
        os.close(descriptor)


class _Streams:
    """A program's standard output and error, read up to a limit."""

    def __init__(self, process: subprocess.Popen[bytes], limit: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._limit = limit
        self._text = {process.stdout: bytearray(), process.stderr: bytearray()}
        self._selector = selectors.DefaultSelector()
        for stream in self._text:
            os.set_blocking(stream.fileno(), False)  # a read must not wait for a program that writes nothing
            self._selector.register(stream, selectors.EVENT_READ)

    def read(self, wait_s: float) -> None:
        """Read what has arrived, waiting at most `wait_s` for it."""
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
        """Return both streams as text, cut off at the limit."""
        self._selector.close()
        out, err = (bytes(text[: self._limit]).decode(errors="replace") for text in self._text.values())
        return out, err


def _watched(process: subprocess.Popen[bytes], limits: Limits) -> Result:
    """Wait until the program ends, and kill it if it reaches a limit."""
    started = time.monotonic()
    streams = _Streams(process, limits.output_kib * 1024)
    reached: ProgramOutcome | None = None
    usage = Usage(started)
    next_look = started + WATCH_S
    # Streams may stay open longer than the process: a child of the program may hold them.
    while reached is None and (process.poll() is None or streams.is_open):
        now = time.monotonic()
        if now - started > limits.wall_s:
            reached = "timeout"
        elif streams.is_full:
            reached = "output"
        elif now >= next_look:  # not at every turn: a look costs more than reading the streams
            seen, next_look = look(process.pid, now), now + WATCH_S
            reached = None if seen is None else seen.reached(limits)
            # Once the program has ended, only bubblewrap's processes are seen, and not what the program has used.
            usage = seen if seen and seen.cpu_s >= usage.cpu_s else usage
        if streams.is_open:
            streams.read(min(WATCH_S, max(0.0, started + limits.wall_s - now)))
        else:
            time.sleep(0.005)  # both streams are closed: there is nothing to wait on but the process itself
    if reached is not None:
        _end(process)
    status = process.wait()
    out, err = streams.texts()
    ended = time.monotonic()
    outcome = reached or _outcome(status, err, had_time=usage.most_cpu_s(ended) < limits.cpu_s)
    return Result(outcome, None if reached else status, out, err, ended - started)


def _outcome(status: int, stderr: str, *, had_time: bool) -> ProgramOutcome:
    """Return how a program ended that was not killed here.

    The shell's convention reports a signal as 128 plus its number. At the limit of CPU time the kernel sends SIGXCPU,
    and SIGKILL one second later to a program that ignored it.
    """
    if status == 0:
        return "ok"
    # An allocation beyond the limit of address space fails; Python then ends with this error.
    last = stderr.rstrip().rpartition("\n")[2]
    if last.startswith("MemoryError"):
        return "memory"
    if status - 128 == signal.SIGXCPU or (status - 128 == signal.SIGKILL and not had_time):
        return "timeout"
    return "signal" if status > 128 else "exit"


def _was_made(report: bytes) -> bool:
    """Return whether bubblewrap's report names the namespace's first process: else there was no sandbox."""
    return any("child-pid" in json.loads(line) for line in report.splitlines())


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the sandbox with everything in it, if it has not ended, and close its streams."""
    kill_group(process)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
