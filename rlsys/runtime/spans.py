"""What a worker does when: spans on the wall clock, kept until the driver asks for them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Span = tuple[str, float, float]
"""Name, start and end in seconds since the epoch: the clock that processes and nodes share."""
MAX_KEPT = 20_000
"""Of a worker that nobody asks; older ones are forgotten."""


class Spans:
    """One worker's lane of the timeline."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._done: deque[Span] = deque(maxlen=MAX_KEPT)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measure a block, also one that fails."""
        start = self._clock()
        try:
            yield
        finally:
            self._done.append((name, start, self._clock()))

    def add(self, name: str, start: float, end: float) -> None:
        """A span measured elsewhere, on `time.time`."""
        self._done.append((name, start, end))

    def take(self) -> list[Span]:
        """Everything since the last call."""
        taken = list(self._done)
        self._done.clear()
        return taken
