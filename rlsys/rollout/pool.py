"""The pool of rollout workers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from rlsys.errors import RlsysError, WorkerDiedError
from rlsys.rollout.engine_client import EngineClient
from rlsys.rollout.liveness import fault_of
from rlsys.rollout.setup import EngineSetup
from rlsys.rollout.worker import RolloutWorker
from rlsys.runtime.chunks import chunks_of, pick
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.room import Demand
from rlsys.types import RolloutGroup, Trajectory

# Ray calls that one worker may hold open; most of them only wait.
MAX_CONCURRENT_CALLS = 64


class RolloutPool:
    """Interchangeable engines, by number. Token arrays stay in the object store; the driver sees summaries.

    An engine that is lost takes part in nothing until `restart` has put another process in its place. Engines may also
    join (`reserve`, `restart`, `join`) and leave (`leave`, `end`, `release`).
    """

    def __init__(
        self, cluster: Cluster, setup: EngineSetup, demands: list[Demand], further: Callable[[int], Demand]
    ) -> None:
        """Start a process for each demand; `further` gives the demands of engines that join later, by number."""
        self._cluster = cluster
        self._calls = cluster.calls
        self._setup = setup
        self._demands = dict(enumerate(demands))
        self._further = further
        self.workers_per_engine = setup.rollout.tensor_parallel_size
        self.membership = 0
        self.on_lost: Callable[[int, str], None] | None = None  # hears of every engine that is lost, and why
        self._workers = {number: self._process(number) for number in range(len(demands))}  # those that live
        self._started: dict[int, Any] = {}  # started, and not yet joined
        self._leaving: dict[int, Any] = {}  # no member any more, and still running
        self.engines = {number: self._client(number, worker) for number, worker in self._workers.items()}

    @property
    def num_workers(self) -> int:
        """Number of engines that live."""
        return len(self._workers)

    def name(self, engine: int) -> str:
        """Return an engine's name."""
        return self._demand(engine).name

    def is_alive(self, engine: int) -> bool:
        """Return whether an engine has not been lost, as far as is known."""
        return engine in self._workers

    async def start(self, deadline_s: float) -> None:
        """Build every engine."""
        await self._calls.gather(self._each("start"), what="starting the engines", deadline_s=deadline_s)

    async def stop(self, deadline_s: float) -> None:
        """Shut every engine down."""
        await self._calls.gather(self._each("stop"), what="stopping the engines", deadline_s=deadline_s)

    def lose(self, engine: int, why: str) -> None:
        """End an engine's process, which is gone, hangs or has failed; its open calls fail."""
        worker = self._workers.pop(engine, None)
        if worker is None:  # whoever waited for it reports the loss
            return
        self._cluster.kill(worker)
        self.membership += 1
        if self.on_lost is not None:
            self.on_lost(engine, why)

    def report(self, error: WorkerDiedError) -> None:
        """Take the engine that the error names out of the pool, if it is one."""
        for engine in [number for number in self._workers if self.name(number) == error.worker]:
            self.lose(engine, str(error))

    async def reserve(self, engine: int, deadline_s: float) -> None:
        """Reserve room for an engine that joins; raises what `Room.wait` does, and then none is reserved."""
        await self._cluster.room.add(self._demand(engine), deadline_s)

    def release(self, engine: int) -> None:
        """Give back the room of an engine whose process has ended, and of which none takes the place."""
        self._cluster.release(self.name(engine))

    def leave(self, engine: int) -> None:
        """Let an engine take part in broadcasts no more; `end` comes next. One that was lost is gone already."""
        worker = self._workers.pop(engine, None)
        if worker is not None:
            self._leaving[engine] = worker
            self.membership += 1

    async def end(self, engine: int, deadline_s: float) -> None:
        """Stop an engine that has left, in order if it can be. Raises what `Calls.result` does; it has ended then."""
        worker = self._leaving.pop(engine, None)
        if worker is None:
            return
        try:
            what = "stopping an engine"
            await self._calls.result(worker.stop.remote(), who=self.name(engine), what=what, deadline_s=deadline_s)
        finally:
            self._cluster.kill(worker)

    async def restart(self, engine: int, deadline_s: float) -> None:
        """Start a process as an engine that was lost or is new, with the weights of `model.path`; `join` comes next.

        Raises what `Calls.result` does; nothing is left of an attempt that failed.
        """
        worker = self._process(engine)
        try:
            started = worker.start.remote()
            what = "starting an engine again"
            await self._calls.result(started, who=self.name(engine), what=what, deadline_s=deadline_s)
        except BaseException:
            self._cluster.kill(worker)
            raise
        self._started[engine] = worker

    def join(self, engine: int) -> None:
        """Let an engine that `restart` has started take part in broadcasts, from the next one on."""
        worker = self._workers[engine] = self._started.pop(engine)
        self.engines[engine] = self._client(engine, worker)
        self.membership += 1

    async def fault(self, engine: int) -> str | None:
        """Return what is wrong with an engine that makes no progress, or None."""
        worker = self._workers.get(engine)
        if worker is None:
            return None
        wait = partial(self._calls.result, who=self.name(engine), what="a sign of life", is_work=False)
        try:
            found = await fault_of(worker.prove_life.remote, worker.cpu_seconds.remote, wait, on_gpu=self._is_on_gpu)
        except RlsysError as error:
            found = str(error)
        return found if self._workers.get(engine) is worker else None

    async def trajectories(self, group: RolloutGroup) -> list[Trajectory]:
        """Fetch a group's token arrays to the driver: for writing them to a file, not for training."""
        chunks, indices = chunks_of([group.trajectories])
        who = f"the object store (group {group.group_id})"
        read = [await self._calls.read(chunk, who=who, what="reading trajectories") for chunk in chunks]
        return pick(read, indices)[0]

    def begin_join_weights(self, init_infos: list[dict[str, Any]]) -> dict[str, Any]:
        """Open the weight channel on every engine."""
        return {
            self.name(number): worker.join_weights.remote(info)
            for (number, worker), info in zip(self._workers.items(), init_infos, strict=True)
        }

    def begin_receive_weights(self, update_info: Mapping[str, Any], policy_version: int) -> dict[str, Any]:
        """Receive one broadcast on every engine."""
        return self._each("receive_weights", dict(update_info), policy_version)

    def begin_receive_adapter(self, adapter: Any, policy_version: int) -> dict[str, Any]:
        """Load an adapter on every engine; `adapter` is a reference to what the learner's rank 0 reads."""
        return self._each("receive_adapter", adapter, policy_version)

    def begin_probe(self, token_ids: np.ndarray, names: Collection[str] | None = None) -> dict[str, Any]:
        """Compute the log-probabilities of given tokens on every engine, or on those that are named."""
        workers = {self.name(number): worker for number, worker in self._workers.items()}
        return {name: workers[name].probe.remote(token_ids) for name in (workers if names is None else names)}

    def begin_take_spans(self) -> dict[str, Any]:
        """Fetch what each engine did since the last call."""
        return self._each("take_spans")

    @property
    def _is_on_gpu(self) -> bool:
        return self._demands[0].num_gpus > 0

    def _demand(self, engine: int) -> Demand:
        if engine not in self._demands:
            self._demands[engine] = self._further(engine)
        return self._demands[engine]

    def _process(self, engine: int) -> Any:
        options = {"max_concurrency": MAX_CONCURRENT_CALLS}
        return self._cluster.start(RolloutWorker, self._demand(engine), engine, self._setup, **options)

    def _client(self, engine: int, worker: Any) -> EngineClient:
        return EngineClient(self.name(engine), worker, self._calls, linger_s=self._setup.rollout.linger_s)

    def _each(self, method: str, *args: Any) -> dict[str, Any]:
        return {self.name(number): getattr(worker, method).remote(*args) for number, worker in self._workers.items()}
