"""Trackers on threads of their own: one that raises or hangs loses its own rows and costs the run nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from rlsys.metrics.trackers import TrackedRun, Tracker
from rlsys.metrics.trackers.choice import choose_trackers

logger = logging.getLogger(__name__)

MAX_WAITING = 100  # rows that wait for a slow tracker; further ones are dropped
MAX_FAILURES = 3  # failures in a row after which a tracker is not called any more
CLOSE_S = 5.0  # seconds for all trackers together to write what waits and to close


class TrackerThread:
    """A thread that opens, writes and closes one tracker, in this order, in the background."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        """Start the thread, which opens the tracker.

        Args:
            name: the tracker's name in messages and metrics.
            open_tracker: opens the tracker; called again before each row until it succeeds.
        """
        self.name = name
        self._open = open_tracker
        self._rows: SimpleQueue[tuple[int, dict[str, float | None]] | None] = SimpleQueue()  # None: the end
        self._tracker: Tracker | None = None
        self._failures = 0  # in a row
        self._has_failed = False
        # Two counts, because two threads count: the driver's rows that found no room, and the tracker's failed writes.
        self._refused = 0
        self._lost = 0
        self._thread = threading.Thread(target=self._serve, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of steps that have not reached the tracker and will not."""
        return self._refused + self._lost

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Queue one row; never waits."""
        if self._rows.qsize() < MAX_WAITING:
            self._rows.put((step, dict(metrics)))
            return
        if self._refused == 0:
            logger.warning("tracker '%s' is too slow: %d steps wait, further ones are dropped", self.name, MAX_WAITING)
        self._refused += 1

    def finish(self) -> None:
        """Ask the thread to close the tracker once the waiting rows are written."""
        self._rows.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, and log how many steps are missing."""
        self._thread.join(timeout_s)
        missing = self.dropped
        if self._thread.is_alive():
            missing += max(self._rows.qsize() - 1, 0)  # without the end mark
            logger.warning(
                "tracker '%s' did not close within %g s after the end of the run and is abandoned", self.name, CLOSE_S
            )
        if missing:
            logger.warning("tracker '%s': %d steps did not reach it; metrics.jsonl has them all", self.name, missing)

    def _serve(self) -> None:
        self._try("open", self._open_once)
        while (row := self._rows.get()) is not None:
            if self._is_given_up or not self._try("write", partial(self._write, *row)):
                self._lost += 1
        if self._tracker is not None and not self._is_given_up:
            self._try("close", self._tracker.close)

    @property
    def _is_given_up(self) -> bool:
        return self._failures >= MAX_FAILURES

    def _open_once(self) -> Tracker:
        if self._tracker is None:
            self._tracker = self._open()
        return self._tracker

    def _write(self, step: int, metrics: dict[str, float | None]) -> None:
        self._open_once().write(step, metrics)

    def _try(self, action: str, call: Callable[[], Any]) -> bool:
        """Return whether `call` succeeded. Log the first failure, and the one after which the tracker is given up."""
        try:
            call()
        except BaseException as error:  # SystemExit too: a library that exits ends only this thread
            self._failures += 1
            if not self._has_failed:
                logger.warning(
                    "tracker '%s' failed to %s, the run continues: %s: %s",
                    self.name,
                    action,
                    type(error).__name__,
                    error,
                )
            elif self._is_given_up:
                logger.warning("tracker '%s' failed %d times in a row and is given up", self.name, MAX_FAILURES)
            self._has_failed = True
            return False
        self._failures = 0
        return True


class Trackers:
    """All trackers of a run."""

    def __init__(self, entries: Sequence[Any], run: TrackedRun) -> None:
        """Open what `logging.trackers` lists. Raises ConfigError as `choose_trackers` does, and nothing else."""
        self._threads = [TrackerThread(name, partial(opener, run)) for name, opener in choose_trackers(entries).items()]

    def dropped(self) -> dict[str, float | None]:
        """Return `trackers/<name>/dropped`, the steps that did not reach a tracker so far, for those that lost any."""
        return {f"trackers/{thread.name}/dropped": thread.dropped for thread in self._threads if thread.dropped}

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Queue one step's row for every tracker; never waits."""
        for thread in self._threads:
            thread.write(step, metrics)

    def close(self) -> None:
        """Close all trackers, waiting `CLOSE_S` at most."""
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.finish()
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
