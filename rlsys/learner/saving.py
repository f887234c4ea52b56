"""Files that the ranks of a group write together: at once, or copied first and written while training goes on.

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
from rlsys.learner.host_copy import host_copy
from rlsys.run_folder.room import naming_full_disk

Failure = tuple[str, bool]  # what failed, and whether the disk is full


class Writing:
    """One checkpoint of one rank: writes it at once, or collects copies and writes them in a thread."""

    def __init__(self, who: str, *, is_late: bool) -> None:
        self._who = who
        self._is_late = is_late
        self._failures: list[Failure] = []
        self._files: list[tuple[str | Path, Callable[[], Any]]] = []
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
        """Write a file or folder by `write`, which holds nothing that training changes: now, or in the thread."""
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
                state = host_copy(state_dict) if self._is_late else state_dict
                self.add(path, partial(_save, state, path))

        def copy_scripts(folder: str) -> None:
            self.add(folder, partial(type(engine)._copy_recovery_script, engine, folder))

        engine.checkpoint_engine.save, engine._copy_recovery_script = save, copy_scripts
        try:
            yield
        finally:
            del engine.checkpoint_engine.save, engine._copy_recovery_script

    def check(self) -> None:
        """Raise on every rank what failed on any until now. All ranks call it."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, self._failures)
        raise_failures([failure for of_rank in gathered for failure in of_rank])

    def start(self) -> None:
        """Begin to write what was added, if it is not written yet."""
        self._thread.start()

    def found(self) -> list[Failure] | None:
        """Return what failed, once everything is written; None until then."""
        return None if self._thread.is_alive() else self._failures

    def wait(self) -> None:
        """Wait until everything is written, if writing has begun."""
        if self._thread.ident is not None:
            self._thread.join()

    def _write(self) -> None:
        while self._files:
            path, write = self._files.pop(0)
            with self.file(path):
                write()
            del write  # with the copy that it holds


def raise_failures(failures: list[Failure]) -> None:
    """Raise NoRoomError if a failure is that of a full disk, else RlsysError if there are any."""
    if failures:
        text = "; ".join(text for text, _ in failures)
        raise (NoRoomError if any(is_full for _, is_full in failures) else RlsysError)(text)


def _save(state: Any, path: str) -> None:
    # By a file object: of a path that cannot be written whole, torch only reports an unexpected position.
    with open(path, "wb", buffering=0) as file:
        torch.save(state, file)
