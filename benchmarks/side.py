"""One side of a benchmark in a fresh process, so that threads, memory and libraries of the other cannot interfere.

`python -m benchmarks.side FD module:function` is that process. The function is a context manager that sets the side up
and gives what measures it; every request over the pipe is one call of that.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

STOP_S = 60.0
LOG_LINES = 30


def end_on_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does: through every `with` and `finally`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class SideError(RuntimeError):
    """A side failed; the message has its traceback and the end of its output."""


class Side:
    """Use as a context; calling it measures once. What the side prints goes to `log`."""

    def __init__(self, target: str, *, log: Path, env: Mapping[str, str], **arguments: Any) -> None:
        self._target = target
        self._log = log
        self._env = env
        self._arguments = arguments

    def __enter__(self) -> Side:
        self._pipe, theirs = Pipe()
        with self._log.open("w") as log, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.side", str(theirs.fileno()), self._target],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self._env),
                pass_fds=(theirs.fileno(),),
                # A group of its own: everything the side starts can be ended with it.
                start_new_session=True,
            )
        try:
            self(**self._arguments)
        except BaseException:
            self._end(politely=False)
            raise
        return self

    def __call__(self, **arguments: Any) -> Any:
        """One measurement; returns what the side's function returns. Raises SideError when the side fails."""
        try:
            self._pipe.send(arguments)
            failed, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            failed, answer = True, f"the process ended: {error!r}"
        if failed:
            lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise SideError(f"{self._target} failed\n{answer}\nEnd of its output:\n" + "\n".join(lines))
        return answer

    def __exit__(self, error: object, *_: object) -> None:
        self._end(politely=error is None)

    def _end(self, *, politely: bool) -> None:
        """A closed pipe tells the side to shut down; in the middle of a measurement only a signal reaches it."""
        self._pipe.close()
        if not politely:
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def main() -> None:
    """The side's process: the first message sets up, every further one measures."""
    descriptor, target = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(descriptor, False)
    end_on_sigterm()
    pipe = Connection(descriptor)
    module, _, name = target.partition(":")
    try:
        setup = getattr(importlib.import_module(module), name)
        with setup(**pipe.recv()) as measure, contextlib.suppress(EOFError):
            _serve(pipe, measure)
    except BaseException:
        # The pipe alone carries the traceback: the log's end is left for what the libraries said before it.
        with contextlib.suppress(OSError):
            pipe.send((True, traceback.format_exc()))
        sys.exit(1)


def _serve(pipe: Connection, measure: Callable[..., Any]) -> None:
    """Answer requests until the pipe closes, which is an EOFError."""
    pipe.send((False, None))
    while True:
        pipe.send((False, measure(**pipe.recv())))


if __name__ == "__main__":
    main()
