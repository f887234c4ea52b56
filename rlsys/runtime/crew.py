"""Interchangeable Ray workers without a state of their own: one that is lost is replaced, its work done again."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rlsys.errors import DeadlineError, RlsysError, WorkerDiedError
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.room import Demand

logger = logging.getLogger(__name__)


class Crew:
    """Workers of one class, by number; the class has a method `start`, which returns once the worker is ready."""

    def __init__(self, cluster: Cluster, worker: type, demands: list[Demand], *args: Any) -> None:
        """Start a process for each demand; `args` are what every worker is made with."""
        self._cluster = cluster
        self._class = worker
        self._demands = demands
        self._args = args
        self.workers = {number: self._process(number) for number in range(len(demands))}  # those that live

    def name(self, number: int) -> str:
        """Return a worker's name."""
        return self._demands[number].name

    @property
    def named(self) -> dict[str, Any]:
        """The handles of those that live, by name."""
        return {self.name(number): worker for number, worker in self.workers.items()}

    async def start(self, deadline_s: float) -> None:
        """Wait until every worker is ready."""
        calls = {name: worker.start.remote() for name, worker in self.named.items()}
        what = f"starting the {self._class.__name__}s"
        await self._cluster.calls.gather(calls, what=what, deadline_s=deadline_s)

    async def replace(
        self, number: int, error: RlsysError, prepare: Callable[[Any], Awaitable[None]] | None = None
    ) -> bool:
        """Start another process in the place of a worker that is gone or does not answer.

        Args:
            number: the worker.
            error: what was noticed of it.
            prepare: is awaited with the new process's handle before anybody uses it.

        Returns:
            False when it was replaced `cluster.max_restarts` times within an hour, and stays out.

        Raises:
            WorkerError: a new process cannot do its work.
        """
        lost_at, name = time.monotonic(), self.name(number)
        self._cluster.kill(self.workers.pop(number))
        logger.warning("%s was lost; what it worked on is done again. %s", name, error)
        while self._cluster.restarts.take(name):
            worker = self._process(number)
            try:
                await self._ready(worker, name)
                if prepare is not None:
                    await prepare(worker)
            except BaseException as failure:
                self._cluster.kill(worker)
                if not _is_loss(failure, name):
                    raise
                logger.warning("%s was lost again: %s", name, failure)
                continue
            self.workers[number] = worker
            logger.warning("%s works again, %.1f s after it was lost", name, time.monotonic() - lost_at)
            return True
        limit = self._cluster.restarts.most
        logger.error("%s stays out of work: cluster.max_restarts=%d within an hour is reached", name, limit)
        return False

    async def move(self, number: int, prepare: Callable[[Any], Awaitable[None]] | None = None) -> None:
        """Let a new process, in the room that the worker has now, take its place; raises what its start does.

        The process before does what it was given, and ends when nobody waits for it.
        """
        before, worker = self.workers[number], self._process(number)
        try:
            await self._ready(worker, self.name(number))
            if prepare is not None:
                await prepare(worker)
        except BaseException:
            self._cluster.kill(worker)
            self._cluster.workers[self.name(number)] = before
            raise
        self.workers[number] = worker

    async def _ready(self, worker: Any, name: str) -> None:
        deadline_s = self._cluster.startup_deadline_s
        await self._cluster.calls.result(worker.start.remote(), who=name, what="starting again", deadline_s=deadline_s)

    def _process(self, number: int) -> Any:
        return self._cluster.start(self._class, self._demands[number], *self._args)


def _is_loss(failure: BaseException, name: str) -> bool:
    """Return whether this worker, and nobody else, is gone or does not answer."""
    if isinstance(failure, WorkerDiedError):
        return failure.worker == name
    return isinstance(failure, DeadlineError)
