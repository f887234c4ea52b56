"""Two sides that step in turns: a virtual machine's speed changes from minute to minute, and so changes for both."""

from __future__ import annotations

import os
import select
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

DEADLINE_S = 1800.0  # for everything that the other side does before this one's next turn


@dataclass
class Turns:
    """One side's view: each side has a named pipe, and a byte in it says that the turn is its own."""

    mine: Path
    theirs: Path

    @classmethod
    def of_two(cls, folder: Path) -> tuple[Turns, Turns]:
        """Return both sides' views. Nobody has the turn: a side that is ready to be second gives it to the first."""
        first, second = folder / "first-turn", folder / "second-turn"
        for path in (first, second):
            os.mkfifo(path)
        return cls(first, second), cls(second, first)

    def take(self) -> None:
        """Wait for this side's turn. Raises TimeoutError when the other side does not give it."""
        if not select.select([self._reading], [], [], DEADLINE_S)[0]:
            raise TimeoutError(f"the other side has not given the turn for {DEADLINE_S:g} s")
        os.read(self._reading, 1)

    def give(self) -> None:
        """Give the turn to the other side."""
        os.write(self._writing, b"x")

    # Opened for both ways, so that opening waits for nobody, and held: what nobody has open loses its bytes.
    @cached_property
    def _reading(self) -> int:
        return os.open(self.mine, os.O_RDWR)

    @cached_property
    def _writing(self) -> int:
        return os.open(self.theirs, os.O_RDWR)
