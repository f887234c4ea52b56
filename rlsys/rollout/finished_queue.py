"""The queue of what a rollout worker has finished and the driver has not fetched yet."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection

from rlsys.runtime.spans import SpanRecorder
from rlsys.types import Finished, Trajectory

Entry = tuple[Finished, Trajectory | None]


class FinishedQueue:
    """Results until they are taken; the taker can wait for them."""

    def __init__(self, spans: SpanRecorder, work: str = "generate") -> None:
        """Wait for nothing yet; `work` is what spans on the timeline are called."""
        self._results: list[Entry] = []
        self._first_at = 0.0
        self._changed = asyncio.Event()
        self._spans = spans
        self._work = work
        self._busy_since = 0.0
        self.num_running = 0  # samples that will still finish or be cancelled

    def started(self) -> None:
        """Count one more running sample."""
        if self.num_running == 0:
            self._busy_since = time.time()
        self.num_running += 1

    def ended(self) -> None:
        """Count one running sample less, whether or not it left a result."""
        self.num_running -= 1
        if self.num_running == 0:
            self.record_span()
            self._changed.set()  # nothing more can come, so whoever gathers results need not linger

    def record_span(self) -> None:
        """Record the generation so far for the timeline."""
        now = time.time()
        self._spans.add(self._work, self._busy_since, now)
        self._busy_since = now

    def put(self, finished: Finished, trajectory: Trajectory | None) -> None:
        """Add a result; a sample that failed has no trajectory."""
        if not self._results:
            self._first_at = time.monotonic()
            # Later results wake nobody: the taker already sleeps until this one is `linger_s` old.
            self._changed.set()
        self._results.append((finished, trajectory))

    def drop(self, request_ids: Collection[int]) -> None:
        """Remove results of requests that were cancelled."""
        self._results = [result for result in self._results if result[0].request_id not in request_ids]

    async def take(self, max_wait_s: float, linger_s: float) -> list[Entry]:
        """Take everything that has finished.

        Returns once there is a result and either the first is `linger_s` old or nothing runs any more; after
        `max_wait_s` in any case, then perhaps with an empty list.
        """
        end = time.monotonic() + max_wait_s
        while True:
            until = min(end, self._first_at + linger_s) if self._results else end
            left_s = until - time.monotonic()
            if left_s <= 0 or (self._results and self.num_running == 0):
                break
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)
        taken, self._results = self._results, []
        return taken
