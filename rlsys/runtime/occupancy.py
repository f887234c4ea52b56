"""The fraction of time that workers had nothing to do, as the driver sees it."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Occupancy:
    """The time that each worker, named `role/index`, had at least one call open."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with no open calls; `clock` is replaced in tests."""
        self._clock = clock
        self._since = clock()
        self._open: Counter[str] = Counter()
        self._busy_from: dict[str, float] = {}
        self._busy_s: defaultdict[str, float] = defaultdict(float)

    def begin(self, worker: str) -> None:
        """Count one more open call of a worker."""
        self._busy_s[worker] += 0.0  # from now on the worker counts for its role, busy or not
        self._open[worker] += 1
        if self._open[worker] == 1:
            self._busy_from[worker] = self._clock()

    def end(self, worker: str) -> None:
        """Count one open call less; of a worker that was forgotten meanwhile none counts."""
        if worker not in self._open:
            return
        self._open[worker] -= 1
        if self._open[worker] == 0:
            self._busy_s[worker] += self._clock() - self._busy_from.pop(worker)

    def forget(self, worker: str) -> None:
        """Count a worker that has left no more; it would be idle for ever."""
        for known in (self._open, self._busy_from, self._busy_s):
            known.pop(worker, None)

    @contextmanager
    def busy(self, worker: str) -> Iterator[None]:
        """Count a worker as busy during the block."""
        self.begin(worker)
        try:
            yield
        finally:
            self.end(worker)

    def take(self) -> dict[str, float]:
        """Return `idle/<role>`: the idle fraction of the time since the last call, averaged over the role's workers."""
        now = self._clock()
        for worker in self._busy_from:
            self._busy_s[worker] += now - self._busy_from[worker]
            self._busy_from[worker] = now
        elapsed, self._since = now - self._since, now
        by_role: defaultdict[str, list[float]] = defaultdict(list)
        for worker, seconds in self._busy_s.items():
            by_role[worker.partition("/")[0]].append(seconds)
            self._busy_s[worker] = 0.0
        if elapsed <= 0:
            return {}
        return {f"idle/{role}": max(0.0, 1.0 - sum(busy) / (len(busy) * elapsed)) for role, busy in by_role.items()}
