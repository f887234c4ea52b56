"""Nodes that announce their end, as spot markets do: what works there moves, and learners are saved in time."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

from rlsys.config.schema import Config
from rlsys.errors import DeadlineError, RlsysError
from rlsys.orchestrator.scaling import EngineScaler
from rlsys.runtime.background import Background
from rlsys.runtime.cluster import Cluster

LOOK_EVERY_S = 5.0
STATEFUL = ("learner", "critic")  # roles that cannot move: the run starts again elsewhere, from their checkpoint

logger = logging.getLogger(__name__)


class Places(Protocol):
    """The room of all workers (`rlsys.runtime.room.Room`)."""

    def on_node(self, node: str) -> list[str]:
        """Return the workers whose places are on a node."""


class MovingCrew(Protocol):
    """A pool of interchangeable workers."""

    async def move(self, worker: int) -> None:
        """Let a new process, in the room that a worker has now, take its place."""


class Evacuation:
    """The watch over the nodes, and the moves of the workers on those that end."""

    def __init__(
        self,
        places: Places,
        ending_nodes: Callable[[], Awaitable[Mapping[str, float] | None]],
        movers: Mapping[str, Callable[[int, float], Awaitable[None]]],
        background: Background,
    ) -> None:
        """Move nothing yet.

        Args:
            places: where the workers are.
            ending_nodes: returns the nodes that have announced their end, and seconds until then; None: not known now.
            movers: by role, moves a worker, by number, within a deadline in seconds.
            background: runs the moves.
        """
        self._places = places
        self._ending_nodes = ending_nodes
        self._movers = movers
        self._background = background
        self._ending: dict[str, list[str]] = {}  # nodes, and the workers that were there when they announced it
        self._moving: set[str] = set()

    def holds_learners(self) -> bool:
        """Return whether a node that is about to end has a rank of learner or critic."""
        return any(_role(worker) in STATEFUL for workers in self._ending.values() for worker in workers)

    async def watch(self) -> None:
        """Look after the nodes, for as long as the run lasts."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Begin to empty the nodes that have announced their end since the last look."""
        ending = await self._ending_nodes()
        if ending is None:
            return
        self._ending = {node: workers for node, workers in self._ending.items() if node in ending}
        for node, left_s in ending.items():
            if node not in self._ending:
                self._empty(node, left_s)

    def _empty(self, node: str, left_s: float) -> None:
        workers = self._ending[node] = self._places.on_node(node)
        if not workers:
            return
        when = "" if math.isinf(left_s) else f" in {left_s:.0f} s"
        logger.warning("the node %s ends%s, with %s: what can move does", node[:8], when, ", ".join(workers))
        if any(_role(worker) in STATEFUL for worker in workers):
            logger.warning("its learner ranks cannot move: from now on every step is saved until it ends")
        for worker in workers:
            if _role(worker) in self._movers and worker not in self._moving:
                self._moving.add(worker)
                self._background.start(self._move(worker, left_s))

    async def _move(self, worker: str, left_s: float) -> None:
        try:
            await self._movers[_role(worker)](int(worker.rpartition("/")[2]), left_s)
        except RlsysError as error:
            logger.warning("%s stays until its node ends, and what it has then is done again: %s", worker, error)
        else:
            logger.warning("%s has moved", worker)
        finally:
            self._moving.discard(worker)


def evacuation_of(config: Config, cluster: Cluster, scaler: EngineScaler, **crews: MovingCrew | None) -> Evacuation:
    """Return the evacuation of a run; `crews` are its interchangeable workers, by role."""
    room, most_s = cluster.room, config.cluster.startup_deadline_s

    async def move_engine(engine: int, left_s: float) -> None:
        failure = await scaler.move(engine)
        if failure is not None:
            raise DeadlineError(failure)
        room.forget(f"rollout/{engine}")

    async def move_worker(role: str, crew: MovingCrew, number: int, left_s: float) -> None:
        await room.move(f"{role}/{number}", min(left_s, most_s))
        await crew.move(number)

    movers: dict[str, Callable[[int, float], Awaitable[None]]] = {
        role: partial(move_worker, role, crew) for role, crew in crews.items() if crew is not None
    }
    movers["rollout"] = move_engine
    return Evacuation(room, cluster.ending_nodes, movers, cluster.calls.background)


def _role(worker: str) -> str:
    return worker.partition("/")[0]
