"""The pool of rollout workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlsys.rollout.engine_client import EngineClient
from rlsys.rollout.setup import EngineSetup
from rlsys.rollout.worker import RolloutWorker
from rlsys.runtime.chunks import chunks_of, pick
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.room import Demand
from rlsys.types import RolloutGroup, Trajectory

# Ray calls that one worker may hold open; most of them only wait.
MAX_CONCURRENT_CALLS = 64


class RolloutPool:
    """Interchangeable engines, by index. Token arrays stay in the object store; the driver sees summaries."""

    def __init__(self, cluster: Cluster, setup: EngineSetup, demands: list[Demand]) -> None:
        self._calls = cluster.calls
        self.names = [demand.name for demand in demands]
        self.num_workers = len(demands)
        self.workers_per_engine = setup.rollout.tensor_parallel_size
        self._workers = [
            cluster.start(RolloutWorker, demand, index, setup, max_concurrency=MAX_CONCURRENT_CALLS)
            for index, demand in enumerate(demands)
        ]
        self.engines = [
            EngineClient(name, worker, cluster.calls, linger_s=setup.rollout.linger_s)
            for name, worker in zip(self.names, self._workers, strict=True)
        ]

    async def start(self, deadline_s: float) -> None:
        """Build every engine."""
        await self._calls.gather(self._each("start"), what="starting the engines", deadline_s=deadline_s)

    async def stop(self, deadline_s: float) -> None:
        """Shut every engine down."""
        await self._calls.gather(self._each("stop"), what="stopping the engines", deadline_s=deadline_s)

    async def trajectories(self, group: RolloutGroup) -> list[Trajectory]:
        """Fetch a group's token arrays to the driver: for writing them to a file, not for training."""
        chunks, indices = chunks_of([group.trajectories])
        who = f"the object store (group {group.group_id})"
        read = [await self._calls.read(chunk, who=who, what="reading trajectories") for chunk in chunks]
        return pick(read, indices)[0]

    def begin_join_weights(self, init_infos: list[dict[str, Any]]) -> dict[str, Any]:
        """Open the weight channel on every engine."""
        return {
            name: worker.join_weights.remote(info)
            for name, worker, info in zip(self.names, self._workers, init_infos, strict=True)
        }

    def begin_receive_weights(self, update_info: Mapping[str, Any], policy_version: int) -> dict[str, Any]:
        """Receive one broadcast on every engine."""
        return self._each("receive_weights", dict(update_info), policy_version)

    def begin_receive_adapter(self, adapter: Any, policy_version: int) -> dict[str, Any]:
        """Load an adapter on every engine; `adapter` is a reference to what the learner's rank 0 reads."""
        return self._each("receive_adapter", adapter, policy_version)

    def begin_probe(self, token_ids: np.ndarray) -> dict[str, Any]:
        """Compute the log-probabilities of given tokens on every engine."""
        return self._each("probe", token_ids)

    def begin_take_spans(self) -> dict[str, Any]:
        """Fetch what each engine did since the last call."""
        return self._each("take_spans")

    def _each(self, method: str, *args: Any) -> dict[str, Any]:
        return {
            name: getattr(worker, method).remote(*args) for name, worker in zip(self.names, self._workers, strict=True)
        }
