"""A pool of made-up engines on a virtual clock, with a real router, supervisor and scaler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from rlsys.errors import WorkerDiedError
from rlsys.orchestrator.router import Router
from rlsys.orchestrator.scaling import EngineScaler
from rlsys.orchestrator.supervisor import EngineSupervisor
from rlsys.runtime.background import Background
from rlsys.runtime.restarts import Restarts
from tests.unit.virtual_time import run_virtual

START_S = 20.0
DRAIN_DEADLINE_S = 60.0


class Pool:
    """Engines that start in `START_S`; failures of the next rooms, starts and welcomes can be named."""

    def __init__(self, count: int) -> None:
        self.alive = set(range(count))
        self.on_lost: Callable[[int, str], None] | None = None
        self.events: list[tuple[str, int]] = []
        self.rooms: list[Exception] = []
        self.starts: list[Exception] = []
        self.welcomes: list[Exception] = []
        self.faults: dict[int, str] = {}
        self.hanging: dict[int, asyncio.Future[None]] = {}  # welcomes that end only when the engine is lost

    def name(self, engine: int) -> str:
        return f"rollout/{engine}"

    def is_alive(self, engine: int) -> bool:
        return engine in self.alive

    def lose(self, engine: int, why: str) -> None:
        if engine in self.alive:
            self.alive.remove(engine)
            self.events.append(("lost", engine))
            if engine in self.hanging:
                self.hanging.pop(engine).set_exception(WorkerDiedError(why, self.name(engine)))
            assert self.on_lost is not None
            self.on_lost(engine, why)

    async def restart(self, engine: int, deadline_s: float) -> None:
        assert engine not in self.alive
        await asyncio.sleep(START_S)
        if self.starts:
            raise self.starts.pop(0)
        self.events.append(("started", engine))

    async def reserve(self, engine: int, deadline_s: float) -> None:
        if self.rooms:
            raise self.rooms.pop(0)
        self.events.append(("reserved", engine))

    def release(self, engine: int) -> None:
        assert engine not in self.alive
        self.events.append(("released", engine))

    async def end(self, engine: int, deadline_s: float) -> None:
        assert engine not in self.alive
        self.events.append(("ended", engine))

    async def fault(self, engine: int) -> str | None:
        return self.faults.pop(engine, None) if engine in self.alive else None


class Scene:
    """A supervisor of made-up engines, on a virtual clock."""

    def __init__(self, count: int = 2, max_restarts: int = 5) -> None:
        self.pool = Pool(count)
        self.router = Router([1] * count)
        self.background = Background()
        restarts = Restarts(max_restarts, clock=lambda: asyncio.get_running_loop().time())
        self.supervisor = EngineSupervisor(
            self.pool, self.router, self.background, self._welcome, restarts, startup_deadline_s=100.0
        )
        self.scaler = EngineScaler(
            self.pool, self.router, self.supervisor, self._farewell, drain_deadline_s=DRAIN_DEADLINE_S
        )

    async def _welcome(self, engine: int) -> None:
        assert engine not in self.router.load, "it serves before it has the weights"
        self.pool.alive.add(engine)  # it takes part in the broadcast
        if engine in self.pool.hanging:
            await self.pool.hanging[engine]
        await asyncio.sleep(1.0)
        if self.pool.welcomes:
            error = self.pool.welcomes.pop(0)
            if isinstance(error, WorkerDiedError):
                self.pool.lose(engine, str(error))
            raise error
        self.pool.events.append(("welcomed", engine))

    async def _farewell(self, engine: int) -> None:
        self.pool.alive.discard(engine)

    def play(self, scenario: Any) -> None:
        async def main() -> None:
            await self.background.supervise(scenario())

        run_virtual(main())
