"""Supervision of the engines: those that die or stand still are replaced, while the others serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from rlsys.errors import ConfigError, DeadlineError, WorkerDiedError, WorkerError
from rlsys.orchestrator.router import Router
from rlsys.runtime.background import Background
from rlsys.runtime.restarts import Restarts

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

    async def reserve(self, engine: int, deadline_s: float) -> None:
        """Reserve room for one more engine."""

    def release(self, engine: int) -> None:
        """Give back the room of an engine whose process has ended, and of which none takes the place."""

    async def restart(self, engine: int, deadline_s: float) -> None:
        """Start a process as this engine, in its room."""

    async def fault(self, engine: int) -> str | None:
        """Return what is wrong with an engine that makes no progress, or None."""


class EngineSupervisor:
    """The one who decides what becomes of an engine that is lost: out of service, started again, given the weights.

    The engine serves again once it has the current policy, and computes with it what the learner does. An engine that
    is added while the run goes on (`rlsys.orchestrator.scaling`) comes into service the same way.
    """

    def __init__(
        self,
        engines: Engines,
        router: Router,
        background: Background,
        give_weights: Callable[[int], Awaitable[None]],
        restarts: Restarts,
        *,
        startup_deadline_s: float,
    ) -> None:
        """Hear of lost engines from now on.

        Args:
            engines: the pool.
            router: sends groups to engines in service.
            background: runs replacements.
            give_weights: brings the current policy to an engine that has just started, and checks that it has it.
            restarts: how often an engine may be replaced.
            startup_deadline_s: for starting one.
        """
        self._engines = engines
        self._router = router
        self._background = background
        self._give_weights = give_weights
        self._restarts = restarts
        self._startup_deadline_s = startup_deadline_s
        self._replacing: dict[int, asyncio.Task[None]] = {}
        self._joining: set[int] = set()
        self._dismissed: set[int] = set()
        self.num_replaced = 0
        engines.on_lost = self._on_lost

    async def watch(self) -> None:
        """Look after every engine, for as long as the run lasts."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            # Those that get the weights too: a broadcast would wait for one that stands still.
            engines = {*self._router.load, *self._replacing, *self._joining}
            await asyncio.gather(*(self._check(engine) for engine in engines))

    @property
    def engines(self) -> list[int]:
        """Numbers of the engines that serve or are being replaced, without those that leave."""
        return sorted({*self._router.load, *self._replacing} - self._dismissed)

    async def add(self, engine: int) -> str | None:
        """Put one more engine into service; return what failed, after which nothing of it is left, or None."""
        self._joining.add(engine)
        try:
            await self._engines.reserve(engine, self._startup_deadline_s)
            failure = await self._start_again(engine)
        except (ConfigError, DeadlineError) as error:  # no room
            failure = str(error)
        finally:
            self._joining.discard(engine)
        if failure is None:
            self._dismissed.discard(engine)  # one of the same number may have left before
            self._router.add(engine)
        else:
            self._engines.release(engine)
            self._close_if_none(failure)
        return failure

    async def dismiss(self, engine: int) -> None:
        """Replace an engine no more, whatever becomes of it; one that is being replaced comes back first."""
        while engine in self._replacing:
            await asyncio.wait([self._replacing[engine]])
        self._dismissed.add(engine)

    async def _check(self, engine: int) -> None:
        fault = await self._engines.fault(engine)
        if fault is not None:
            self._engines.lose(engine, f"{self._engines.name(engine)}: {fault}")

    def _on_lost(self, engine: int, why: str) -> None:
        self._router.remove(engine)
        logger.warning("%s was lost; what it sampled is sampled elsewhere. %s", self._engines.name(engine), why)
        # Else it is lost in the hands of `_replace`, which tries again, or of `add`, which does not; or it leaves.
        if engine not in {*self._replacing, *self._joining, *self._dismissed}:
            self._replacing[engine] = self._background.start(self._replace(engine, why))

    async def _replace(self, engine: int, why: str) -> None:
        lost_at, name = _now(), self._engines.name(engine)
        try:
            while self._restarts.take(name):
                failure = await self._start_again(engine)
                if failure is None:
                    self._router.add(engine)
                    self.num_replaced += 1
                    logger.warning("%s serves again, %.1f s after it was lost", name, _now() - lost_at)
                    return
                why = failure
        finally:
            del self._replacing[engine]
        self._give_up(engine, why)

    async def _start_again(self, engine: int) -> str | None:
        """Start a process and give it the weights; return what failed, or None."""
        try:
            await self._engines.restart(engine, self._startup_deadline_s)
            await self._give_weights(engine)
        except (WorkerError, DeadlineError) as error:
            if isinstance(error, WorkerDiedError) and error.worker != self._engines.name(engine):
                raise  # it is not this engine that failed
            self._engines.lose(engine, str(error))
            return str(error)
        return None

    def _give_up(self, engine: int, why: str) -> None:
        name, limit = self._engines.name(engine), self._restarts.most
        logger.error("%s stays out of service: cluster.max_restarts=%d within an hour is reached", name, limit)
        self._engines.release(engine)
        self._close_if_none(why)

    def _close_if_none(self, why: str) -> None:
        if not self.engines and not self._joining:
            self._router.close(why)


def _now() -> float:
    return asyncio.get_running_loop().time()
