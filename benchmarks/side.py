"""One side of a benchmark in a process of its own, unaffected by the other side's threads, memory and libraries.

`python -m benchmarks.side FD module:function` is that process, with the pipe's file descriptor as FD. The function is a
context manager that sets the side up and provides a callable that measures it; every request over the pipe is one call.
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
    """Failure of a side; the message contains its traceback and the end of its output."""


class Side:
    """A side's process, started on entering the context; each call measures once. Its output goes to `log`."""

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
                # A process group of its own, so that everything the side starts can be ended with it.
                start_new_session=True,
            )
        try:
            self(**self._arguments)
        except BaseException:
            self._end(politely=False)
            raise
        return self

    def __call__(self, **arguments: Any) -> Any:
        """Measure once and return what the side's function returns.

        Raises:
            SideError: the side failed or its process ended.
        """
        try:
            self._pipe.send(arguments)
            failed, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            failed, answer = True, f"its process ended before it answered: {error!r}"
        if failed:
            lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            raise SideError(f"{self._target} failed\n{answer}\nEnd of its output:\n" + "\n".join(lines))
        return answer

    def __exit__(self, error: object, *_: object) -> None:
        self._end(politely=error is None)

    def _end(self, *, politely: bool) -> None:
        """Shut the side down: close its pipe, wait at most STOP_S seconds, then kill its process group.

        An idle side ends when its pipe closes. In the middle of a measurement it notices only a signal, so it is sent
        SIGTERM too unless `politely`.
        """
        self._pipe.close()
        if not politely:
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def main() -> None:
    """Run a side's process: the first message sets the side up, every further one measures."""
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
        # Send the traceback only through the pipe, so that the log ends with the output of the libraries before it.
        with contextlib.suppress(OSError):
            pipe.send((True, traceback.format_exc()))
        sys.exit(1)


def _serve(pipe: Connection, measure: Callable[..., Any]) -> None:
    """Answer requests until the pipe closes, which raises EOFError."""
    pipe.send((False, None))
    while True:
        pipe.send((False, measure(**pipe.recv())))


if __name__ == "__main__":
    main()
