"""A queue in front of interchangeable workers that take one call each at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlsys.runtime.background import Background
from rlsys.runtime.balance import balance

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Entry(Generic[T, R]):
    item: T
    result: asyncio.Future[R]


class BatchingQueue(Generic[T, R]):
    """A queue whose waiting items go to idle workers, in one call per worker.

    Batches form by themselves: the busier the workers, the more items wait for the next call.
    """

    def __init__(
        self,
        num_workers: int,
        call: Callable[[int, list[T]], Awaitable[Sequence[R]]],
        background: Background,
        *,
        weight: Callable[[T], int],
    ) -> None:
        """Make an empty queue.

        Args:
            num_workers: workers, by index.
            call: sends items to a worker; returns one result per item, in order.
            background: runs the calls.
            weight: cost of an item; idle workers get nearly equal shares.
        """
        self._call = call
        self._background = background
        self._weight = weight
        self._num_workers = num_workers
        self._waiting: list[_Entry[T, R]] = []
        self._idle = set(range(num_workers))
        self._is_scheduled = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and no worker is busy."""
        return not self._waiting and len(self._idle) == self._num_workers

    @property
    def num_waiting(self) -> int:
        """Number of items that no worker has yet."""
        return len(self._waiting)

    def put(self, item: T) -> asyncio.Future[R]:
        """Queue an item; returns its future result. A failed call fails all its items, and ends the run."""
        loop = asyncio.get_running_loop()
        entry: _Entry[T, R] = _Entry(item, loop.create_future())
        self._waiting.append(entry)
        if self._idle and not self._is_scheduled:
            # Wait for the next turn of the event loop, so that items that arrive together share a call.
            self._is_scheduled = True
            loop.call_soon(self._dispatch)
        return entry.result

    def _dispatch(self) -> None:
        self._is_scheduled = False
        if not self._waiting or not self._idle:
            return
        # Everything that waits goes out at once: holding items back for a fuller batch would only add latency.
        entries, self._waiting = self._waiting, []
        shares = balance([self._weight(entry.item) for entry in entries], len(self._idle))
        for worker, share in zip(sorted(self._idle), shares, strict=True):
            if share:
                self._idle.discard(worker)
                self._background.start(self._serve(worker, [entries[index] for index in sorted(share)]))

    async def _serve(self, worker: int, entries: list[_Entry[T, R]]) -> None:
        try:
            results = await self._call(worker, [entry.item for entry in entries])
        except Exception as error:
            for entry in entries:
                if not entry.result.done():
                    entry.result.set_exception(error)
                    entry.result.exception()  # counts as retrieved: nobody may be waiting for it any more
            # Whoever waits for an item may look only after its last response was sampled: the run ends now.
            raise
        for entry, result in zip(entries, results, strict=True):
            if not entry.result.done():  # cancelled with the task that waited for it
                entry.result.set_result(result)
        self._idle.add(worker)
        self._dispatch()  # what arrived while this worker was busy
