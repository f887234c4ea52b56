"""A rollout engine on a simulated clock."""

from __future__ import annotations

import heapq
from collections import deque

from rlsys.commands.simulate.costs import EngineCosts

Sample = tuple[int, int]  # group, and position of the response in it


class SimulatedEngine:
    """An engine that gives every running sequence one token per iteration; requests above `max_num_seqs` wait."""

    def __init__(self, costs: EngineCosts, max_num_seqs: int) -> None:
        self._costs = costs
        self._max_num_seqs = max_num_seqs
        self._iterations = 0.0  # completed
        self._running: list[tuple[float, Sample]] = []  # heap by the iteration in which each finishes
        self._waiting: deque[tuple[int, Sample]] = deque()
        self._debt_s = 0.0  # prefill and pauses that delay the next iteration
        self._now = 0.0
        self.busy_s = 0.0

    def add(self, now: float, sample: Sample, num_tokens: int) -> None:
        """Add one request; `advance` must have been called up to `now`."""
        self._now = now
        self._waiting.append((num_tokens, sample))
        self._fill()

    def next_event(self) -> float | None:
        """Return the time when the next response finishes if no request is added, or None when none is running."""
        if not self._running:
            return None
        left = max(self._running[0][0] - self._iterations, 0.0)
        return self._now + self._debt_s + left * self._iteration_s

    def advance(self, now: float) -> list[Sample]:
        """Advance the clock to `now` and return the samples that finished until then."""
        done = []
        while (event := self.next_event()) is not None and event <= now + 1e-12:
            self.busy_s += event - self._now
            self._now, self._debt_s = event, 0.0
            self._iterations, sample = heapq.heappop(self._running)
            done.append(sample)
            self._fill()
        passed = max(now - self._now, 0.0)
        if self._running:
            self.busy_s += passed
            paid = min(self._debt_s, passed)
            self._debt_s -= paid
            self._iterations += (passed - paid) / self._iteration_s
        self._now = max(now, self._now)
        return done

    def pause(self, seconds: float) -> None:
        """Stop generating for `seconds`, as for new weights."""
        self._debt_s += seconds if self._running else 0.0

    @property
    def _iteration_s(self) -> float:
        return self._costs.iteration + len(self._running) * self._costs.sequence

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._max_num_seqs:
            num_tokens, sample = self._waiting.popleft()
            self._debt_s += self._costs.request
            heapq.heappush(self._running, (self._iterations + num_tokens, sample))
