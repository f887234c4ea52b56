"""A learner and engines in processes, joined by rlsys's broadcaster."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Self

from rlsys.config.schema import WeightsConfig
from rlsys.runtime.calls import Calls
from rlsys.weights.broadcaster import WeightBroadcaster
from tests.fakes import roles
from tests.fakes.workers import Worker

DEADLINE_S = 120.0  # longer than any test takes where nothing is wrong


class Broadcaster(WeightBroadcaster):
    """The broadcaster with buckets of some bytes instead of MiB."""

    _bucket_bytes = roles.BUCKET_BYTES


class Group:
    """The processes of one test, killed at its end."""

    def __init__(self, backend: str, num_engines: int = 1, num_ranks: int = 1, *, verify: bool = True) -> None:
        self.num_ranks = num_ranks
        self.learner = Worker(roles.build_learner, backend, verify)
        self.engines = [
            [Worker(roles.build_engine_process, f"rlsys-{backend}", rank, num_ranks) for rank in range(num_ranks)]
            for _ in range(num_engines)
        ]
        self._config = WeightsConfig(deadline_s=DEADLINE_S, verify=verify)
        self._backend = backend

    def __enter__(self) -> Self:
        for worker in self.workers:
            worker.wait_started()
        self.sender, receiver = roles.Learner(self.learner, "127.0.0.1", free_port()), roles.Engines(self.engines)
        self.broadcaster = Broadcaster(self.sender, receiver, Calls(), self._config, self._backend)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()

    @property
    def workers(self) -> list[Worker]:
        """The learner's process and the engines'."""
        return [self.learner, *(worker for engine in self.engines for worker in engine)]

    async def broadcast(self, policy_version: int) -> dict[str, float]:
        """Train and broadcast a version; every process must then hold it."""
        sent = await self.learner.call(roles.train)
        metrics = await self.broadcaster.broadcast(policy_version)
        for engine in self.engines:
            for rank, worker in enumerate(engine):
                assert await worker.call(roles.held) == roles.expected_on(rank, self.num_ranks, sent)
        return metrics

    def set_deadline(self, deadline_s: float) -> None:
        """Give later broadcasts another deadline on the driver's side."""
        self.broadcaster._config = replace(self._config, deadline_s=deadline_s)

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run a test's coroutine; a hang is an error."""
        asyncio.run(asyncio.wait_for(scenario, 2 * DEADLINE_S))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
