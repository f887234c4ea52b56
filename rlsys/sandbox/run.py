"""One program in namespaces of its own, by bubblewrap (https://github.com/containers/bubblewrap).

It sees read-only system directories, an empty directory in memory, no network, no other process, no variable of ours.
Limits that the kernel keeps for each process are set inside; what all of its processes use together is watched from
outside. Killing bubblewrap ends the process namespace, and with it everything that runs in there, at once.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import psutil

from rlsys.errors import ConfigError
from rlsys.sandbox.program import Limits, Program, ProgramOutcome, Result

WATCH_S = 0.05
"""Between two looks at what a program uses: a fork bomb gets a few hundred processes far, not further."""
HOME = "/work"
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/alternatives", "/etc/ld.so.cache")


def run(program: Program, limits: Limits) -> Result:
    """Run to the end, or to the first limit reached. Never raises for what a program does."""
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(_memory_file(text)) for name, text in program.files.items()}
        process = subprocess.Popen(
            _command(program, limits, files),
            stdin=stack.enter_context(open(stack.enter_context(_memory_file(program.stdin)), closefd=False)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},  # the sandbox's first process shows it to the others
            pass_fds=list(files.values()),
            start_new_session=True,
        )
        stack.callback(_end, process)
        return _watched(process, limits)


def check() -> None:
    """Raise ConfigError where programs cannot be run in a sandbox on this machine, with the reason."""
    problem = obstacle()
    if problem is not None:
        raise ConfigError(
            f"programs cannot be run safely here: {problem}. Sandboxes need bubblewrap (Debian: apt-get install "
            "bubblewrap) and user namespaces (in a container they must be allowed)"
        )


@cache
def obstacle() -> str | None:
    """Why there can be no sandbox on this machine; None where there can."""
    for tool in ("bwrap", "prlimit"):
        if shutil.which(tool) is None:
            return f"'{tool}' is not installed"
    result = run(Program(["true"]), Limits())
    return None if result.outcome == "ok" else f"{result.outcome}: {result.stderr.strip()[-300:]}"


def python() -> str:
    """This interpreter, outside any virtual environment."""
    return str(Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))


def _command(program: Program, limits: Limits, files: Mapping[str, int]) -> list[str]:
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    for path in (*SYSTEM, sys.base_prefix):
        command += _bound(path)
    command += ["--dev", "/dev", "--size", str(limits.disk_mib * 2**20), "--tmpfs", HOME, "--chdir", HOME]
    command += ["--size", str(2**20), "--tmpfs", "/dev/shm", "--remount-ro", "/dev", "--remount-ro", "/"]
    command += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    command += ["--setenv", "HOME", HOME, "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8"]
    for name, descriptor in files.items():
        command += ["--file", str(descriptor), f"{HOME}/{name}"]
    size = limits.memory_mib * 2**20
    command += ["--", "prlimit", f"--as={size}", f"--cpu={limits.cpu_s}:{limits.cpu_s + 1}", "--core=0"]
    command += [f"--fsize={limits.disk_mib * 2**20}", f"--nproc={limits.processes}", "--nofile=256", "--"]
    return [*command, *program.command]


def _bound(path: str) -> list[str]:
    """Read-only in the sandbox; a link stays a link."""
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", path, path] if os.path.exists(path) and path not in ("/", "/usr/local") else []


@contextlib.contextmanager
def _memory_file(text: str) -> Iterator[int]:
    """A descriptor of a file that holds `text` and has no name."""
    descriptor = os.memfd_create("sandbox")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(text.encode())
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
    """What all processes of the sandbox use too much of together."""
    resident, count = 0, 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            count += 1
            with contextlib.suppress(psutil.NoSuchProcess):
                resident += child.memory_info().rss
    if count > limits.processes + 1:  # bubblewrap's own first process
        return "processes"
    return "memory" if resident > limits.memory_mib * 2**20 else None


def _outcome(status: int, stderr: str, *, had_time: bool) -> ProgramOutcome:
    """Of a program that ended by itself; bubblewrap reports a signal as 128 and its number. At the limit of CPU time
    the kernel sends SIGXCPU, and SIGKILL to one that does not mind."""
    if status == 0:
        return "ok"
    if stderr.startswith("bwrap: "):
        return "refused"
    last = stderr.rstrip().rpartition("\n")[2]
    if last.startswith("MemoryError"):
        return "memory"
    if status - 128 == signal.SIGXCPU or (status - 128 == signal.SIGKILL and not had_time):
        return "timeout"
    if status > 128:
        return "signal"
    return "exit"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it with everything in it; nothing to do for one that has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
