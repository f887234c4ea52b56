"""Files that the ranks of a group write together: where one fails, all of them finish the call, and all raise.

A rank that raised in the middle would leave the others in a collective, and the group could not try again once a full
disk has room.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlsys.errors import NoRoomError, RlsysError
from rlsys.run_folder.room import naming_full_disk


class Writing:
    """One call in which ranks write: what failed on this rank, until `check` tells all of them."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._failures: list[tuple[str, bool]] = []  # what failed, and whether the disk is full

    @contextmanager
    def file(self, path: str | Path) -> Iterator[None]:
        """Write a file or folder in the block; its failure is kept for `check`."""
        try:
            with naming_full_disk(path):
                yield
        except Exception as error:
            text = str(error) if isinstance(error, RlsysError) else f"{path}: {type(error).__name__}: {error}"
            self._failures.append((f"{self._who}: {text}", isinstance(error, NoRoomError)))

    @contextmanager
    def deepspeed(self, engine: Any) -> Iterator[None]:
        """Let the engine write its checkpoint in the block; failures of its files are kept for `check`."""

        def save(state_dict: Any, path: str) -> None:
            # By a file object: of a path that cannot be written whole, torch only reports an unexpected position.
            with self.file(path), open(path, "wb", buffering=0) as file:
                torch.save(state_dict, file)

        def copy_scripts(folder: str) -> None:
            with self.file(folder):
                type(engine)._copy_recovery_script(engine, folder)

        engine.checkpoint_engine.save, engine._copy_recovery_script = save, copy_scripts
        try:
            yield
        finally:
            del engine.checkpoint_engine.save, engine._copy_recovery_script

    def check(self) -> None:
        """Raise on every rank what failed on any: NoRoomError for a full disk, else RlsysError. All ranks call it."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, self._failures)
        failures = [failure for of_rank in gathered for failure in of_rank]
        if failures:
            text = "; ".join(text for text, _ in failures)
            raise (NoRoomError if any(is_full for _, is_full in failures) else RlsysError)(text)
