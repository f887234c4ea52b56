"""How often workers and runs are started again."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

HOUR_S = 3600.0


class Restarts:
    """The restarts of the last hour, by name, and how many there may be (`cluster.max_restarts`)."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def take(self, name: str) -> bool:
        """Count a restart of `name`, unless there have been too many; return whether it may be."""
        times, now = self._times[name], self._clock()
        while times and now - times[0] > HOUR_S:
            times.popleft()
        if len(times) >= self.most:
            return False
        times.append(now)
        return True
