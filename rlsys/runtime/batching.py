"""A queue in front of interchangeable workers that take one call each at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlsys.errors import DeadlineError, RlsysError, WorkerDiedError
from rlsys.runtime.background import Background
from rlsys.runtime.balance import balance

T = TypeVar("T")
R = TypeVar("R")


# How many workers may be lost while they have an item, until it is taken for the cause.
MAX_LOSSES = 3


@dataclass
class _Entry(Generic[T, R]):
    item: T
    result: asyncio.Future[R]
    num_losses: int = 0


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
        replace: Callable[[int, RlsysError], Awaitable[bool]] | None = None,
    ) -> None:
        """Make an empty queue.

        Args:
            num_workers: workers, by index.
            call: sends items to a worker; returns one result per item, in order.
            background: runs the calls.
            weight: cost of an item; idle workers get nearly equal shares.
            replace: puts another worker in the place of one that died or did not answer, of which it gets the error, or
                returns False: it cannot. Items go to others meanwhile. Without it a lost worker ends the run.
        """
        self._call = call
        self._background = background
        self._weight = weight
        self._replace = replace
        self._num_workers = num_workers  # in service, or being replaced
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
        """Queue an item; returns its future result. A call that raises fails all its items, and ends the run."""
        loop = asyncio.get_running_loop()
        entry: _Entry[T, R] = _Entry(item, loop.create_future())
        self._waiting.append(entry)
        if self._idle and not self._is_scheduled:
            # Wait for the next turn of the event loop, so that items that arrive together share a call.
            self._is_scheduled = True
            loop.call_soon(self._dispatch)
        return entry.result

    def report(self, worker: int, error: RlsysError) -> None:
        """Replace a worker that was found lost by another call than the queue's; a busy one's own call fails too."""
        if worker in self._idle:
            self._idle.discard(worker)
            self._background.start(self._lose(worker, [], error))

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
        except (WorkerDiedError, DeadlineError) as error:
            await self._lose(worker, entries, error)
            return
        except Exception as error:
            _fail(entries, error)
            # Whoever waits for an item may look only after its last response was sampled: the run ends now.
            raise
        for entry, result in zip(entries, results, strict=True):
            if not entry.result.done():  # cancelled with the task that waited for it
                entry.result.set_result(result)
        self._idle.add(worker)
        self._dispatch()  # what arrived while this worker was busy

    async def _lose(self, worker: int, entries: list[_Entry[T, R]], error: RlsysError) -> None:
        """Queue the items of a lost worker again, and replace it."""
        for entry in entries:
            entry.num_losses += 1
        if self._replace is None or any(entry.num_losses >= MAX_LOSSES for entry in entries):
            _fail(entries, error)
            raise error
        self._waiting[:0] = [entry for entry in entries if not entry.result.done()]
        self._dispatch()
        if await self._replace(worker, error):
            self._idle.add(worker)
            self._dispatch()
            return
        self._num_workers -= 1
        if self._num_workers == 0:
            _fail(self._waiting, error)
            raise error


def _fail(entries: Sequence[_Entry[Any, Any]], error: Exception) -> None:
    for entry in entries:
        if not entry.result.done():
            entry.result.set_exception(error)
            entry.result.exception()  # counts as retrieved: nobody may be waiting for it any more
