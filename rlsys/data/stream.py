"""The cursor over the prompts."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from functools import cached_property

from rlsys.data.order import Order
from rlsys.types import Prompt


class PromptStream:
    """Endless prompts in a given order.

    A place in it says which prompt. A checkpoint holds the cursor, which is the first place never handed out, and the
    places handed out whose prompts were not trained yet: those come first again.
    """

    def __init__(
        self, prompts: Sequence[Prompt], order: Order, *, cursor: int = 0, pending: Sequence[int] = ()
    ) -> None:
        self._prompts = prompts
        self._order = order
        self.cursor = cursor
        self._pending = deque(sorted(pending))

    def take(self) -> tuple[int, Prompt]:
        """The next place and its prompt."""
        if self._pending:
            place = self._pending.popleft()
        else:
            place, self.cursor = self.cursor, self.cursor + 1
        return place, self._prompts[self._order.at(place)]

    @cached_property
    def digest(self) -> str:
        """Tells these prompts, in this order, from others."""
        found = hashlib.sha256()
        for prompt in self._prompts:
            found.update(prompt.token_ids.tobytes())
            found.update(b"|")
        first = [self._order.at(place) for place in range(min(len(self._prompts), 8))]
        found.update(repr(first).encode())
        return found.hexdigest()[:16]

    @property
    def pending(self) -> list[int]:
        """Places given at the start that have not come again yet."""
        return list(self._pending)
