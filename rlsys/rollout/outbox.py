"""What a rollout worker has finished and nobody has asked for yet."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection

from rlsys.runtime.spans import SpanRecorder
from rlsys.types import Finished, Trajectory

Answer = tuple[Finished, Trajectory | None]


class Outbox:
    """Holds answers until they are taken, and lets the taker wait for them."""

    def __init__(self, spans: SpanRecorder) -> None:
        self._answers: list[Answer] = []
        self._first_at = 0.0
        self._news = asyncio.Event()
        self._spans = spans
        self._busy_since = 0.0
        self.num_running = 0  # requests that will still answer, or be cancelled

    def started(self) -> None:
        if self.num_running == 0:
            self._busy_since = time.time()
        self.num_running += 1

    def ended(self) -> None:
        """One request less runs, whether or not it left an answer."""
        self.num_running -= 1
        if self.num_running == 0:
            self.mark()
            self._news.set()

    def mark(self) -> None:
        """Tell the timeline of the generation so far."""
        now = time.time()
        self._spans.add("generate", self._busy_since, now)
        self._busy_since = now

    def put(self, finished: Finished, trajectory: Trajectory | None) -> None:
        """Of a request that failed there is no trajectory."""
        if not self._answers:
            self._first_at = time.monotonic()
            self._news.set()
        self._answers.append((finished, trajectory))

    def drop(self, group_ids: Collection[int]) -> None:
        """Forget answers to requests that were cancelled."""
        self._answers = [answer for answer in self._answers if answer[0].group_id not in group_ids]

    async def take(self, max_wait_s: float, linger_s: float) -> list[Answer]:
        """Everything that has finished, as soon as the first of it is `linger_s` old or nothing runs any more; whatever
        there is, also nothing, after `max_wait_s`."""
        end = time.monotonic() + max_wait_s
        while True:
            until = min(end, self._first_at + linger_s) if self._answers else end
            left_s = until - time.monotonic()
            if left_s <= 0 or (self._answers and self.num_running == 0):
                break
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left_s)
        taken, self._answers = self._answers, []
        return taken
