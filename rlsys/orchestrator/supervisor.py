"""Supervision of the engines: those that die or stand still are replaced, while the others serve."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from rlsys.errors import DeadlineError, WorkerDiedError, WorkerError
from rlsys.orchestrator.router import Router
from rlsys.runtime.background import Background

HOUR_S = 3600.0
CHECK_EVERY_S = 10.0

logger = logging.getLogger(__name__)


class Engines(Protocol):
    """The pool of engines."""

    on_lost: Callable[[int, str], None] | None

    def name(self, engine: int) -> str:
        """Return an engine's name."""

    def is_alive(self, engine: int) -> bool:
        """Return whether an engine has not been lost, as far as is known."""

    def lose(self, engine: int, why: str) -> None:
        """End an engine's process."""

    async def restart(self, engine: int, deadline_s: float) -> None:
        """Start another process in its place."""

    async def fault(self, engine: int) -> str | None:
        """Return what is wrong with an engine that makes no progress, or None."""


class EngineSupervisor:
    """The one who decides what becomes of an engine that is lost: out of service, started again, given the weights.

    The engine serves again once it has the current policy, and computes with it what the learner does.
    """

    def __init__(
        self,
        engines: Engines,
        router: Router,
        background: Background,
        give_weights: Callable[[int], Awaitable[None]],
        *,
        max_restarts: int,
        startup_deadline_s: float,
    ) -> None:
        """Hear of lost engines from now on.

        Args:
            engines: the pool.
            router: sends groups to engines in service.
            background: runs replacements.
            give_weights: brings the current policy to an engine that has just started, and checks that it has it.
            max_restarts: how often an engine is replaced within an hour.
            startup_deadline_s: for starting one.
        """
        self._engines = engines
        self._router = router
        self._background = background
        self._give_weights = give_weights
        self._max_restarts = max_restarts
        self._startup_deadline_s = startup_deadline_s
        self._starts: defaultdict[int, deque[float]] = defaultdict(deque)  # moments of the last hour
        self._replacing: set[int] = set()
        self.num_replaced = 0
        engines.on_lost = self._on_lost

    async def watch(self) -> None:
        """Look after every engine in service, for as long as the run lasts."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            await asyncio.gather(*(self._check(engine) for engine in self._router.load))

    async def _check(self, engine: int) -> None:
        fault = await self._engines.fault(engine)
        if fault is not None:
            self._engines.lose(engine, f"{self._engines.name(engine)}: {fault}")

    def _on_lost(self, engine: int, why: str) -> None:
        self._router.remove(engine)
        logger.warning("%s was lost; what it sampled is sampled elsewhere. %s", self._engines.name(engine), why)
        if engine not in self._replacing:  # else the replacement itself was lost, and `_replace` tries again
            self._replacing.add(engine)
            self._background.start(self._replace(engine, why))

    async def _replace(self, engine: int, why: str) -> None:
        lost_at, name = _now(), self._engines.name(engine)
        try:
            while self._may_restart(engine):
                failure = await self._start_again(engine)
                if failure is None:
                    self._router.add(engine)
                    self.num_replaced += 1
                    logger.warning("%s serves again, %.1f s after it was lost", name, _now() - lost_at)
                    return
                why = failure
        finally:
            self._replacing.discard(engine)
        self._give_up(engine, why)

    async def _start_again(self, engine: int) -> str | None:
        """Start a process and give it the weights; return what failed, or None."""
        self._starts[engine].append(_now())
        try:
            await self._engines.restart(engine, self._startup_deadline_s)
            await self._give_weights(engine)
        except (WorkerError, DeadlineError) as error:
            if isinstance(error, WorkerDiedError) and error.worker != self._engines.name(engine):
                raise  # it is not this engine that failed
            self._engines.lose(engine, str(error))
            return str(error)
        return None

    def _may_restart(self, engine: int) -> bool:
        starts = self._starts[engine]
        while starts and _now() - starts[0] > HOUR_S:
            starts.popleft()
        return len(starts) < self._max_restarts

    def _give_up(self, engine: int, why: str) -> None:
        name, limit = self._engines.name(engine), self._max_restarts
        logger.error("%s stays out of service: rollout.max_restarts=%d within an hour is reached", name, limit)
        if not self._router.load and not self._replacing:
            self._router.close(why)


def _now() -> float:
    return asyncio.get_running_loop().time()
