"""The stream of prompts that training takes from, and its position for checkpoints."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Collection, Sequence
from functools import cached_property

from rlsys.data.order import Order
from rlsys.types import Prompt


class PromptStream:
    """Endless prompts in a given order; each has a position.

    A checkpoint holds the cursor, which is the first position that was never taken, and the positions that were taken
    but not trained yet. On resume these come first.
    """

    def __init__(
        self, prompts: Sequence[Prompt], order: Order, *, cursor: int = 0, pending: Sequence[int] = ()
    ) -> None:
        self._prompts = prompts
        self._order = order
        self.cursor = cursor
        self._pending = deque(sorted(pending))

    def take(self) -> tuple[int, Prompt]:
        """Return the next position and its prompt."""
        if self._pending:
            position = self._pending.popleft()
        else:
            position, self.cursor = self.cursor, self.cursor + 1
        return position, self.at(position)

    def keep(self, positions: Collection[int]) -> None:
        """Take pending positions out that need not be taken again: their groups are kept from the checkpoint."""
        self._pending = deque(position for position in self._pending if position not in positions)

    def at(self, position: int) -> Prompt:
        """Return the prompt at a position."""
        return self._prompts[self._order.at(position)]

    @cached_property
    def digest(self) -> str:
        """Hash of the prompts and the start of their order; a resumed run compares it with the checkpoint's."""
        found = hashlib.sha256()
        for prompt in self._prompts:
            found.update(prompt.token_ids.tobytes())
            found.update(b"|")
        # The first positions are enough to tell another seed, weight or shuffle from this one.
        first = [self._order.at(position) for position in range(min(len(self._prompts), 8))]
        found.update(repr(first).encode())
        return found.hexdigest()[:16]

    @property
    def pending(self) -> list[int]:
        """Positions from the checkpoint that have not been taken again yet."""
        return list(self._pending)
