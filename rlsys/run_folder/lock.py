"""The claim of a run on its folder: one writer at a time, on this machine or on another that shares the file system.

The lock is the kernel's (`flock`): it ends with the process that holds it, however that ends, so no stale lock is ever
left. On NFS the server keeps it. The file's content only says who holds it.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlsys.config.paths import nearest_existing
from rlsys.errors import ConfigError
from rlsys.run_folder.layout import LOCK

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what a file system without locks answers

logger = logging.getLogger(__name__)


def new_folder(path: Path) -> Path:
    """Make a folder that nobody else has: `path`, or `path-2`, `path-3` and so on where a run took it before."""
    names = itertools.chain([path.name], (f"{path.name}-{number}" for number in itertools.count(2)))
    for folder in map(path.with_name, names):
        try:
            with _named_errors(folder):
                folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("there is always another number")


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the folder's lock in the block; make the folder where there is none.

    Raises:
        ConfigError: another run holds it; the message names its machine, process and start. Or the folder cannot be
            written.
    """
    with _named_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / LOCK).open("a+", encoding="utf-8")
    with file:
        _take(file.fileno(), run_dir)
        file.truncate(0)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write(json.dumps(holder) + "\n")
        file.flush()
        yield


def check_free(run_dir: Path) -> None:
    """Raise ConfigError when another run holds the folder, or when it could not be made or written."""
    with _named_errors(run_dir):
        if (run_dir / LOCK).exists():
            with (run_dir / LOCK).open("a+", encoding="utf-8") as file:
                _take(file.fileno(), run_dir)
        there = nearest_existing(run_dir)
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write in {there}")


def is_held(run_dir: Path) -> bool:
    """Return whether a run holds the folder; on a file system without locks, whether one ever did.

    Raises ConfigError when the lock cannot be read.
    """
    with _named_errors(run_dir):
        try:
            with (run_dir / LOCK).open(encoding="utf-8") as file:
                # Shared: two that ask at the same time do not take each other for a run.
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError) as error:
            return isinstance(error, BlockingIOError)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return True
        return False


def _take(descriptor: int, run_dir: Path) -> None:
    """Take the lock until the file is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"run_dir {run_dir} is in use by another run{_holder(run_dir)}: wait for its end, stop it, or choose "
            "another run_dir"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("%s is on a file system without locks: make sure that no other run writes there", run_dir)


def _holder(run_dir: Path) -> str:
    try:
        holder = json.loads((run_dir / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it has not written its name yet
        return ""
    return f" (process {holder['pid']} on {holder['host']}, started {holder['started']})"


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    """Turn the system's errors about the folder into ConfigError; one that is there already stays FileExistsError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileExistsError) and folder.is_dir():
            raise
        raise ConfigError(
            f"run_dir {folder} cannot be written: {error.strerror or error}. Choose another with run_dir=..., or with "
            "the environment variable RLSYS_RUNS"
        ) from error
