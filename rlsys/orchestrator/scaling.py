"""The change of the number of engines while a run goes on."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from rlsys.errors import DeadlineError, WorkerError
from rlsys.orchestrator.router import Router
from rlsys.orchestrator.supervisor import EngineSupervisor

# Seconds that an engine gets to stop by itself before it is killed.
STOP_S = 30.0

logger = logging.getLogger(__name__)


class LeavingEngines(Protocol):
    """The pool of engines."""

    def name(self, engine: int) -> str:
        """Return an engine's name."""

    def lose(self, engine: int, why: str) -> None:
        """End an engine's process, if it lives."""

    async def end(self, engine: int, deadline_s: float) -> None:
        """Stop an engine that broadcasts do not reach any more; nothing for one that was lost."""

    def release(self, engine: int) -> None:
        """Give back the room of an engine whose process has ended."""


class EngineScaler:
    """The way of engines into a run and out of it, one at a time.

    The lowest free number joins, as an engine that was lost comes back. The highest number leaves: it gets no new
    groups, and finishes those that it has.
    """

    def __init__(
        self,
        engines: LeavingEngines,
        router: Router,
        supervisor: EngineSupervisor,
        take_leave: Callable[[int], Awaitable[None]],
        *,
        drain_deadline_s: float,
    ) -> None:
        """Change the engines that `supervisor` looks after.

        Args:
            engines: the pool.
            router: sends groups to engines in service.
            supervisor: starts engines, and replaces them.
            take_leave: takes an engine out of broadcasts.
            drain_deadline_s: for the groups that an engine still has when it leaves.
        """
        self._engines = engines
        self._router = router
        self._supervisor = supervisor
        self._take_leave = take_leave
        self._drain_deadline_s = drain_deadline_s
        self._changing = asyncio.Lock()  # one change at a time

    async def resize(self, wanted: int, report: Callable[[str], None]) -> str | None:
        """Let engines join or leave until there are `wanted`, at least 1; `report` gets what is going on.

        Returns:
            why an engine could not join, after which those that joined before it have left again; or None.
        """
        async with self._changing:
            before = self._supervisor.engines
            while len(self._supervisor.engines) > wanted:
                await self._remove(self._supervisor.engines[-1], report)
            while len(self._supervisor.engines) < wanted:
                engine, failure = await self._add(report)
                if failure is not None:
                    await self._remove_all(set(self._supervisor.engines) - set(before), report)
                    return f"{self._engines.name(engine)} could not join, and the run goes on as before: {failure}"
        return None

    async def move(self, engine: int) -> str | None:
        """Let another engine join, elsewhere, and this one leave; return why none could join, or None."""
        async with self._changing:
            if engine not in self._supervisor.engines:
                return None
            _, failure = await self._add(logger.info)
            if failure is None:
                await self._remove(engine, logger.info)
            return failure

    async def _add(self, report: Callable[[str], None]) -> tuple[int, str | None]:
        """Let the engine of the lowest free number join; return it, and what failed."""
        engine = next(number for number in itertools.count() if number not in self._supervisor.engines)
        report(f"{self._engines.name(engine)} starts")
        failure = await self._supervisor.add(engine)
        if failure is None:
            logger.info("%s has joined, and serves", self._engines.name(engine))
        return engine, failure

    async def _remove_all(self, engines: set[int], report: Callable[[str], None]) -> None:
        for engine in sorted(engines, reverse=True):
            await self._remove(engine, report)

    async def _remove(self, engine: int, report: Callable[[str], None]) -> None:
        name = self._engines.name(engine)
        report(f"{name} leaves, and finishes {self._router.load.get(engine, 0)} responses before")
        await self._supervisor.dismiss(engine)
        try:
            async with asyncio.timeout(self._drain_deadline_s):
                await self._router.drain(engine)
        except TimeoutError:
            left = self._router.load.get(engine, 0)
            self._router.retire(engine)  # before its groups fail: it is no loss, and their next attempts go elsewhere
            why = f"it had not finished {left} responses within {self._drain_deadline_s:g} s, and leaves without them"
            self._engines.lose(engine, f"{name}: {why}")
        else:
            await self._take_leave(engine)
            await self._end(engine)
        self._router.retire(engine)
        self._engines.release(engine)
        logger.info("%s has left", name)

    async def _end(self, engine: int) -> None:
        try:
            await self._engines.end(engine, STOP_S)
        except (DeadlineError, WorkerError) as error:
            # It has delivered everything, so a warning is enough.
            logger.warning("not stopped in order, its process is killed now: %s", error)
