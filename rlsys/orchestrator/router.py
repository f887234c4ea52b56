"""The choice of an engine for each group: the least loaded one that has room for the whole group."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Sequence
from types import TracebackType

from rlsys.errors import ScheduleError, WorkerDiedError

# Priority classes of waiting groups; within a class the older group comes first.
RESTART, EVALUATION, NEW = range(3)
Priority = tuple[int, int]
# The heap of loads is rebuilt when it has this many entries per engine, most of them outdated.
MAX_ENTRIES = 8
Waiter = tuple[Priority, int, int, "asyncio.Future[Lease]"]


class Lease:
    """Room for a group's trajectories on one engine: released one by one, and the rest when the context ends."""

    def __init__(self, router: Router, engine: int, life: int, num_samples: int) -> None:
        self.engine = engine
        self.life = life  # which of the processes that served as this engine, one after another
        self._router = router
        self._held = num_samples

    def release(self, num_samples: int) -> None:
        """Release the room of finished trajectories."""
        if num_samples > self._held:
            raise ScheduleError(
                f"engine {self.engine} cannot finish {num_samples} trajectories of a group: {self._held} of it run"
            )
        self._held -= num_samples
        self._router.release(self, num_samples)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release(self._held)


class Router:
    """The load of every engine in service, and the groups that wait for room on one.

    A group stays together because its samples share the prompt's prefix cache. A group larger than an engine's cap
    gets an idle engine. Engines are compared by load over cap; among equals the lowest number wins, so that runs are
    reproducible. Engines may join and leave; one that joins has the cap of the last that the router was made with.
    """

    def __init__(self, caps: Sequence[int]) -> None:
        """Put engines into service.

        Args:
            caps: the most concurrent trajectories of each engine; engines are numbered from 0.

        Raises:
            ValueError: a cap is below 1.
        """
        if not caps or min(caps) < 1:
            raise ValueError(f"caps={list(caps)}: give at least one engine, each with a cap of at least 1")
        self._caps = dict(enumerate(caps))
        self._load: dict[int, int] = dict.fromkeys(self._caps, 0)  # trajectories running, by engine in service
        self._lives = dict.fromkeys(self._caps, 0)
        self._draining: dict[int, asyncio.Event] = {}  # engines that get nothing new; set once they have nothing
        # Engines by load over cap. An entry whose load is no longer the engine's is dropped when it comes up.
        self._by_load: list[tuple[float, int, int]] = [(0.0, engine, 0) for engine in self._load]
        self._has_equal_caps, self._new_cap = len(set(caps)) == 1, caps[-1]
        self._waiting: list[Waiter] = []
        self._numbers = itertools.count()
        self._closed_by = ""
        self.num_lost = 0

    @property
    def load(self) -> dict[int, int]:
        """Number of trajectories running on each engine in service."""
        return dict(self._load)

    @property
    def num_restarting(self) -> int:
        """Number of groups that wait for room after a failed attempt."""
        return sum(priority[0] == RESTART and not granted.done() for priority, *_, granted in self._waiting)

    def try_reserve(self, num_samples: int) -> Lease | None:
        """Return room for a group of `num_samples`, counted from now on; None when no engine has it."""
        skipped, found = [], None
        while self._by_load and found is None:
            entry = heapq.heappop(self._by_load)
            _, engine, load = entry
            if self._load.get(engine) != load or engine in self._draining:
                continue  # out of date, or out of service, now or soon
            skipped.append(entry)
            if load == 0 or load + num_samples <= self._caps[engine]:  # idle engines take groups above their cap
                found = engine
            elif self._has_equal_caps:
                break  # the others have even less room
        for entry in skipped:
            if entry[1] != found:
                heapq.heappush(self._by_load, entry)
        if found is None:
            return None
        self._change(found, num_samples)
        return Lease(self, found, self._lives[found], num_samples)

    async def reserve(self, num_samples: int, priority: Priority) -> Lease:
        """Wait for room for a group; the lowest `priority` is served first.

        Raises:
            WorkerDiedError: no engine is left, and none comes back.
        """
        if self._closed_by:
            raise self._no_engine()
        # Whoever waits is not overtaken, even by a group that would fit. `_serve` below may still give room at once: by
        # its class a group can stand before all others in the heap.
        lease = None if self._waiting else self.try_reserve(num_samples)
        if lease is not None:
            return lease
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._numbers), num_samples, granted))
        self._serve()
        try:
            return await granted
        except asyncio.CancelledError:
            # Room that was granted in the same turn of the event loop would be lost: nobody else knows of it.
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                granted.result().__exit__(None, None, None)
            raise

    def release(self, lease: Lease, num_samples: int) -> None:
        """Count trajectories as finished; an engine that has been out of service since has nothing to count."""
        engine = lease.engine
        if engine in self._load and lease.life == self._lives[engine] and num_samples:
            self._change(engine, -num_samples)
            if engine in self._draining and self._load[engine] == 0:
                self._draining[engine].set()
            self._serve()

    def remove(self, engine: int) -> None:
        """Take a lost engine out of service and forget its load; groups may wait until it or another is back."""
        self.num_lost += self._load.pop(engine, None) is not None
        if engine in self._draining:
            self._draining[engine].set()

    async def drain(self, engine: int) -> None:
        """Give an engine nothing new from now on; return once it has finished what it has, or is lost."""
        idle = self._draining[engine] = asyncio.Event()
        if self._load.get(engine, 0):
            await idle.wait()

    def retire(self, engine: int) -> None:
        """Take an engine out of service that leaves by intention, with what still runs on it; it does not count."""
        self._load.pop(engine, None)
        self._draining.pop(engine, None)

    def add(self, engine: int) -> None:
        """Put an engine into service, a new one or one that was lost, with nothing running on it."""
        self._lives[engine] = self._lives.get(engine, 0) + 1  # what an earlier engine of its number held is void
        self._caps.setdefault(engine, self._new_cap)
        self._load[engine] = 0
        heapq.heappush(self._by_load, (0.0, engine, 0))
        self._serve()

    def close(self, why: str) -> None:
        """Let whoever waits for room fail, now and later: no engine is left, and none comes back."""
        self._closed_by = why
        for *_, granted in self._waiting:
            if not granted.done():
                granted.set_exception(self._no_engine())
        self._waiting.clear()

    def _change(self, engine: int, num_samples: int) -> None:
        load = self._load[engine] = self._load[engine] + num_samples
        heapq.heappush(self._by_load, (load / self._caps[engine], engine, load))
        if len(self._by_load) > MAX_ENTRIES * len(self._load):
            self._by_load = [(load / self._caps[engine], engine, load) for engine, load in self._load.items()]
            heapq.heapify(self._by_load)

    def _serve(self) -> None:
        """Give room to waiting groups in order: a small group does not overtake a larger one."""
        while self._waiting:
            _, _, num_samples, granted = self._waiting[0]
            if granted.done():  # cancelled
                heapq.heappop(self._waiting)
                continue
            lease = self.try_reserve(num_samples)
            if lease is None:
                return
            heapq.heappop(self._waiting)
            granted.set_result(lease)

    def _no_engine(self) -> WorkerDiedError:
        return WorkerDiedError(f"no engine is left to sample on; the last one was lost: {self._closed_by}")
