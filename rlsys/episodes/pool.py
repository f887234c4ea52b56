"""The pool of episode workers, as engines for the scheduler: an episode's turns all go to the engine of its lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from rlsys.episodes.setup import EpisodeSetup
from rlsys.episodes.worker import EpisodeWorker
from rlsys.errors import DeadlineError, RlsysError, SampleError, WorkerDiedError, WorkerError
from rlsys.rollout.engine_client import EngineClient
from rlsys.rollout.pool import RolloutPool
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.crew import Crew
from rlsys.runtime.room import Demand
from rlsys.scoring.caller import Caller
from rlsys.types import EpisodeRequest, Prompt, Sample, Sampling


class EpisodePool:
    """Interchangeable workers; a request goes to the one with the fewest episodes, and one that is lost is replaced."""

    def __init__(self, cluster: Cluster, setup: EpisodeSetup, demands: list[Demand], engines: RolloutPool) -> None:
        self._calls = cluster.calls
        self._linger_s = setup.linger_s
        self._crew = Crew(cluster, EpisodeWorker, demands, setup, Caller.here())
        self._clients = {number: self._client(number) for number in self._crew.workers}
        self._engines = engines
        self._changed = asyncio.Event()
        self._num_lost = 0  # that are being replaced
        self.engines: Mapping[int, EpisodeEngine] = _Engines(self, engines)

    def lose(self, engine: int, why: str) -> None:
        """Take an engine that is gone out of service."""
        self._engines.lose(engine, why)

    async def start(self, deadline_s: float) -> None:
        """Wait until every worker has loaded its environment."""
        await self._crew.start(deadline_s)

    async def move(self, worker: int) -> None:
        """Let a new process, in the room that a worker has now, take its place."""
        await self._crew.move(worker)
        self._clients[worker] = self._client(worker)

    def begin_take_spans(self) -> dict[str, Any]:
        """Fetch what each worker did since the last call."""
        return {name: worker.take_spans.remote() for name, worker in self._crew.named.items()}

    async def client(self) -> tuple[int, EngineClient]:
        """Return the worker with the fewest episodes; raises WorkerError when none is left."""
        while not self._clients:
            if not self._num_lost:
                raise WorkerError("no episode worker is left: each was lost cluster.max_restarts times within an hour")
            self._changed.clear()
            await self._changed.wait()
        number = min(self._clients, key=lambda number: (self._clients[number].num_running, number))
        return number, self._clients[number]

    def replace(self, number: int, client: EngineClient, error: RlsysError) -> None:
        """Start another process in the place of a worker that is gone, unless that has begun already."""
        if self._clients.get(number) is not client:
            return
        del self._clients[number]
        self._num_lost += 1

        async def put_in_place() -> None:
            try:
                if await self._crew.replace(number, error):
                    self._clients[number] = self._client(number)
            finally:
                self._num_lost -= 1
                self._changed.set()

        self._calls.background.start(put_in_place())

    def _client(self, number: int) -> EngineClient:
        name, worker = self._crew.name(number), self._crew.workers[number]
        return EngineClient(name, worker, self._calls, linger_s=self._linger_s)


class EpisodeEngine:
    """An engine on which episodes are played (`rlsys.orchestrator.sampling.Engine`)."""

    def __init__(self, pool: EpisodePool, engine: EngineClient) -> None:
        self.name = engine.name
        self.num_running = 0
        self.engine = engine
        self._pool = pool

    @asynccontextmanager
    async def sample(
        self,
        prompt: Prompt,
        sampling_params: Sequence[Sampling],
        *,
        done: Collection[int] = (),
        policy_version: int,
        stream: int,
    ) -> AsyncIterator[AsyncIterator[list[Sample]]]:
        """Play one group's episodes; a worker that is lost meanwhile is a failed attempt, and not the engine's end."""
        number, client = await self._pool.client()

        def make(request_id: int) -> EpisodeRequest:
            return EpisodeRequest(
                request_id,
                prompt.token_ids,
                tuple(sampling_params),
                stream,
                frozenset(done),
                prompt=prompt,
                engine=self.engine.worker,
                engine_name=self.name,
                policy_version=policy_version,
            )

        left = sum(sampling.samples_per_prompt for sampling in sampling_params) - len(done)
        self.num_running += left

        async def delivered(results: AsyncIterator[list[Sample]]) -> AsyncIterator[list[Sample]]:
            nonlocal left
            try:
                async for samples in results:
                    left -= len(samples)
                    self.num_running -= len(samples)
                    yield samples
            except (WorkerDiedError, DeadlineError) as error:
                if isinstance(error, WorkerDiedError) and error.worker == self.name:
                    raise
                self._pool.replace(number, client, error)
                raise SampleError(str(error)) from error

        try:
            async with client.open(make, policy_version) as results:
                yield delivered(results)
        finally:
            self.num_running -= left


class _Engines(Mapping[int, EpisodeEngine]):
    """The engines of the rollout pool, each as one for episodes; another takes the place of one that was lost."""

    def __init__(self, pool: EpisodePool, engines: RolloutPool) -> None:
        self._pool = pool
        self._engines = engines
        self._made: dict[int, EpisodeEngine] = {}

    def __getitem__(self, number: int) -> EpisodeEngine:
        engine = self._engines.engines[number]
        if number not in self._made or self._made[number].engine is not engine:
            self._made[number] = EpisodeEngine(self._pool, engine)
        return self._made[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._engines.engines)

    def __len__(self) -> int:
        return len(self._engines.engines)
