"""Spans of a worker's work on the wall clock, kept until the driver fetches them for the timeline."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Name, start and end, in seconds since the epoch: the clock that processes and nodes share.
Span = tuple[str, float, float]
MAX_KEPT = 20_000  # spans kept for a driver that never fetches them; older ones are dropped


class SpanRecorder:
    """The record of what one worker does when."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Start without spans; `clock` is replaced in tests."""
        self._clock = clock
        self._done: deque[Span] = deque(maxlen=MAX_KEPT)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record the time of a block, also of one that raises."""
        start = self._clock()
        try:
            yield
        finally:
            self._done.append((name, start, self._clock()))

    def add(self, name: str, start: float, end: float) -> None:
        """Record a span that was measured elsewhere, on `time.time`."""
        self._done.append((name, start, end))

    def take(self) -> list[Span]:
        """Return the spans since the last call."""
        taken = list(self._done)
        self._done.clear()
        return taken
