"""Messages of a run: on the terminal for the person who started it, and in one file per process under `logs/`."""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import signal
import sys
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.logging import RichHandler

LOG_DIR = "RLSYS_LOG_DIR"  # environment of a worker: the folder of its log file
WORKER = "RLSYS_WORKER"  # environment of a worker: its name, such as `rollout/0`
ASK_STACKS = signal.SIGUSR1  # makes a worker write what it does to its log
SHOW_OUTPUT = "RLSYS_SHOW_OUTPUT"  # environment of a worker: set when Ray shows its output in the driver's terminal
TAIL_LINES, TAIL_BYTES = 10, 1500  # how much of the end of a log an error shows
END_OF = "\nThe end of "
# Failures of one kind that a process logs, and how much of each: metrics and rollouts have them all.
MAX_FAILURES = 20
MAX_CHARACTERS = 300
FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

logger = logging.getLogger(__name__)
_CRASH_FILES: list[IO[str]] = []


class _PlainHandler(logging.Handler):
    """A handler that prints the message alone; anything above INFO begins with its level."""

    def __init__(self, errors: bool) -> None:
        super().__init__()
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if record.levelno > logging.INFO:
            text = f"{record.levelname.lower()}: {text}"
        try:
            print(text, file=sys.stderr if self._errors else sys.stdout, flush=True)
        except OSError:  # a terminal or a pipe that is gone: the file has the message, and the run ends in order
            self.handleError(record)


@functools.cache
def terminal() -> Console:
    """Return the process's only console, so that messages and a live table do not overwrite each other."""
    return Console()


def log_to_terminal(*, errors: bool = False) -> None:
    """Show messages of rlsys from INFO on; call it once.

    A terminal gets rich's handler. Anything else (a file, a pipe) gets plain lines, which rich would wrap.

    Args:
        errors: use the standard error stream, because the standard output is for results.
    """
    console = Console(stderr=True) if errors else terminal()
    handler: logging.Handler = _PlainHandler(errors)
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, omit_repeated_times=False, markup=False)
    _add(handler)


class FailureLog:
    """The log of failures that may come in thousands: the first ones are shown, and the last of these says so."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._count = 0

    def add(self, what: str, error: BaseException, *, with_traceback: bool = False) -> None:
        """Log a failure, with the last line of its error; the first one with its traceback if wanted."""
        self._count += 1
        if self._count > MAX_FAILURES:
            return
        cause = str(error).partition(END_OF)[0].rstrip().rpartition("\n")[2][:MAX_CHARACTERS]
        end = "" if self._count < MAX_FAILURES else "; further failures like this are not logged"
        trace = error if with_traceback and self._count == 1 else None
        self._log.warning("%s: %s: %s%s", what, type(error).__name__, cause, end, exc_info=trace)


def log_to_file(folder: Path, name: str) -> logging.FileHandler:
    """Write messages of rlsys from INFO on to `folder/name.log` as well; a `/` in the name becomes `-`."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log_file(folder, name), encoding="utf-8")
    handler.setFormatter(logging.Formatter(FILE_FORMAT))
    _add(handler)
    return handler


def log_file(folder: Path, name: str) -> Path:
    """Return the file that a process of this name logs to."""
    return folder / f"{name.replace('/', '-')}.log"


def end_of_log(folder: Path | None, name: str) -> str:
    """Return the last lines of a process's log, under its name, to be put at the end of an error; "" if it has none."""
    file = None if folder is None else log_file(folder, name)
    if file is None or not file.is_file():
        return ""
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - TAIL_BYTES))
        lines = log.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    return "\n".join([f"{END_OF}{file}:", *(f"  {line}" for line in lines)])


def end_of_own_log() -> str:
    """Return the last lines of this worker's log, as `end_of_log` does."""
    folder = os.environ.get(LOG_DIR)
    return end_of_log(Path(folder) if folder else None, os.environ.get(WORKER, ""))


def log_worker() -> None:
    """Write this worker's messages and output to its file, which the driver named in the environment.

    The file gets what the process and its children print, and Python's stacks when the process dies of a fault such as
    a segmentation violation, or gets the signal `ASK_STACKS`. On a node that does not share the driver's folder, all of
    it stays in Ray's own logs.
    """
    folder, name = os.environ.get(LOG_DIR), os.environ.get(WORKER)
    if not folder or not name:
        return
    try:
        handler = log_to_file(Path(folder), name)
    except OSError as error:
        logger.warning("%s: no log file in %s (%s); see Ray's logs of this node", name, folder, error)
        return
    # Never closed, unlike the handler's stream: the stack is written from a signal handler, by the file's number.
    crashes = open(handler.baseFilename, "a", encoding="utf-8")  # noqa: SIM115
    _CRASH_FILES.append(crashes)
    faulthandler.enable(file=crashes)
    faulthandler.register(ASK_STACKS, file=crashes, all_threads=True)
    if SHOW_OUTPUT not in os.environ:
        for output in (sys.stdout, sys.stderr):
            output.flush()
            os.dup2(crashes.fileno(), output.fileno())
    logger.info("%s started, process %d", name, os.getpid())


def _add(handler: logging.Handler) -> None:
    root = logging.getLogger("rlsys")
    root.setLevel(logging.INFO)
    # A process that runs several commands or workers (tests do) has one handler of each kind.
    for before in [each for each in root.handlers if type(each) is type(handler)]:
        root.removeHandler(before)
        before.close()
    root.addHandler(handler)
