"""Trackers on threads of their own: one that raises or hangs loses its own rows and costs the run nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from rlsys.metrics.trackers import Start, Tracker
from rlsys.metrics.trackers.choice import chosen

MAX_WAITING = 100
"""Rows that wait for a slow tracker; further ones are dropped."""
MAX_FAILURES = 3
"""In a row, then a tracker is left alone."""
CLOSE_S = 5.0
"""For all trackers together to write what waits and to close."""

Row = tuple[int, dict[str, float | None]]


class TrackerThread:
    """Opens, writes and closes one tracker, in that order, in the background."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        self.name = name
        self._open = open_tracker
        self._say = say
        self._rows: SimpleQueue[Row | None] = SimpleQueue()  # None: no more will come
        self._tracker: Tracker | None = None
        self._failures = 0  # in a row
        self._has_failed = False
        # Two counts, for two threads.
        self._refused = 0
        self._lost = 0
        self._thread = threading.Thread(target=self._serve, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Steps that have not reached the tracker and will not."""
        return self._refused + self._lost

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Hand over one row; never waits."""
        if self._rows.qsize() < MAX_WAITING:
            self._rows.put((step, dict(metrics)))
            return
        if self._refused == 0:
            self._say(f"tracker '{self.name}' does not keep up: {MAX_WAITING} steps wait, further ones are dropped")
        self._refused += 1

    def finish(self) -> None:
        """No further rows: close when those that wait are written."""
        self._rows.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the end, and say what is missing."""
        self._thread.join(timeout_s)
        missing = self.dropped
        if self._thread.is_alive():
            missing += max(self._rows.qsize() - 1, 0)  # all that waits but the end
            self._say(f"tracker '{self.name}' did not end within {CLOSE_S:g} s of the run's end and is left behind")
        if missing:
            self._say(f"tracker '{self.name}': {missing} steps did not reach it; metrics.jsonl has them all")

    def _serve(self) -> None:
        self._try("open", self._open_once)
        while (row := self._rows.get()) is not None:
            if self._is_left_alone or not self._try("write", partial(self._write, *row)):
                self._lost += 1
        if self._tracker is not None and not self._is_left_alone:
            self._try("close", self._tracker.close)

    @property
    def _is_left_alone(self) -> bool:
        return self._failures >= MAX_FAILURES

    def _open_once(self) -> Tracker:
        if self._tracker is None:
            self._tracker = self._open()
        return self._tracker

    def _write(self, step: int, metrics: dict[str, float | None]) -> None:
        self._open_once().write(step, metrics)

    def _try(self, what: str, call: Callable[[], Any]) -> bool:
        """Whether `call` succeeded. Says the first failure, and when it was the last try."""
        try:
            call()
        except BaseException as error:  # SystemExit too: a library's exit ends no more than its thread
            self._failures += 1
            if not self._has_failed:
                self._say(f"tracker '{self.name}' failed to {what}, the run goes on: {type(error).__name__}: {error}")
            elif self._is_left_alone:
                self._say(f"tracker '{self.name}' failed {MAX_FAILURES} times in a row and is left alone from now on")
            self._has_failed = True
            return False
        self._failures = 0
        return True


class Trackers:
    """All trackers of a run."""

    def __init__(self, entries: Sequence[Any], start: Start) -> None:
        """Opens what `logging.trackers` lists. Raises ConfigError as `chosen` does, and nothing else."""
        self._threads = [
            TrackerThread(name, partial(opener, start), start.say) for name, opener in chosen(entries).items()
        ]

    def dropped(self) -> dict[str, float | None]:
        """`trackers/<name>/dropped`: steps so far that did not reach a tracker, where there are any."""
        return {f"trackers/{thread.name}/dropped": thread.dropped for thread in self._threads if thread.dropped}

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """One step, to all; never waits."""
        for thread in self._threads:
            thread.write(step, metrics)

    def close(self) -> None:
        """Waits for `CLOSE_S` at most."""
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.finish()
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
