"""Files that the ranks of a group write together: at once, or copied and written while training goes on.

A rank that raised in the middle of the collectives would leave the others in them, so failures are kept until all ranks
are through. The group can try again once a full disk has room.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlsys.errors import NoRoomError, RlsysError
from rlsys.learner.host_copy import HostCopy
from rlsys.run_folder.room import naming_full_disk

Failure = tuple[str, bool]  # what failed, and whether the disk is full


class Writing:
    """One checkpoint of one rank: writes it at once, or copies and then writes it in a thread."""

    def __init__(self, who: str, *, is_late: bool) -> None:
        self._who = who
        self._is_late = is_late
        self._failures: list[Failure] = []
        self._copies: list[HostCopy] = []
        self._files: list[tuple[str | Path, Callable[[], Any]]] = []
        self._is_copied = threading.Event()
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)

    @contextmanager
    def file(self, path: str | Path) -> Iterator[None]:
        """Look at, prepare or write a file or folder in the block; its failure is kept."""
        try:
            with naming_full_disk(path):
                yield
        except Exception as error:
            text = str(error) if isinstance(error, RlsysError) else f"{path}: {type(error).__name__}: {error}"
            self._failures.append((f"{self._who}: {text}", isinstance(error, NoRoomError)))

    def add(self, path: str | Path, write: Callable[[], Any]) -> None:
        """Write a file or folder by `write`: now, or in the thread, while training changes what is not copied."""
        if self._is_late:
            self._files.append((path, write))
            return
        with self.file(path):
            write()

    @contextmanager
    def deepspeed(self, engine: Any) -> Iterator[None]:
        """Take over the files that the engine writes in the block as its checkpoint."""

        def save(state_dict: Any, path: str) -> None:
            with self.file(path):
                self.add(path, partial(_save, self._held(state_dict), path))

        def copy_scripts(folder: str) -> None:
            self.add(folder, partial(type(engine)._copy_recovery_script, engine, folder))

        engine.checkpoint_engine.save, engine._copy_recovery_script = save, copy_scripts
        try:
            yield
        finally:
            del engine.checkpoint_engine.save, engine._copy_recovery_script

    def _held(self, state: Any) -> Callable[[], Any]:
        """Return a function that returns the state as it is now, once."""
        if not self._is_late:
            return lambda: state
        copy = HostCopy(state)
        self._copies.append(copy)
        return copy.take

    def check(self) -> None:
        """Raise on every rank what failed on any until now. All ranks call it."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, self._failures)
        raise_failures([failure for of_rank in gathered for failure in of_rank])

    def start(self) -> None:
        """Begin to copy and write what was added, if it is not written yet."""
        self._thread.start()

    def is_copying(self) -> bool:
        """Return whether training may not change yet what was added."""
        return self._thread.ident is not None and not self._is_copied.is_set()

    def wait_for_copy(self) -> None:
        """Wait until training may change what was added."""
        if self.is_copying():
            self._is_copied.wait()

    def found(self) -> list[Failure] | None:
        """Return what failed, once everything is written; None until then."""
        return None if self._thread.is_alive() else self._failures

    def wait(self) -> None:
        """Wait until everything is written, if writing has begun."""
        if self._thread.ident is not None:
            self._thread.join()

    def _write(self) -> None:
        self._copy()
        while self._files:
            path, write = self._files.pop(0)
            with self.file(path):
                write()
            del write  # with the copy that it holds

    def _copy(self) -> None:
        try:
            for copy in self._copies:
                copy.fill()
        except Exception as error:
            self._failures.append((f"{self._who}: the copy of its state: {type(error).__name__}: {error}", False))
            self._files.clear()  # they would be written without it
        finally:
            self._copies.clear()
            self._is_copied.set()


def raise_failures(failures: list[Failure]) -> None:
    """Raise NoRoomError if a failure is that of a full disk, else RlsysError if there are any."""
    if failures:
        text = "; ".join(text for text, _ in failures)
        raise (NoRoomError if any(is_full for _, is_full in failures) else RlsysError)(text)


def _save(take: Callable[[], Any], path: str) -> None:
    # By a file object: of a path that cannot be written whole, torch only reports an unexpected position.
    with open(path, "wb", buffering=0) as file:
        torch.save(take(), file)
