"""The pool of rollout workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlsys.config.schema import RolloutConfig
from rlsys.rollout.worker import LOADED_VERSION, RolloutWorker
from rlsys.runtime.calls import fetch
from rlsys.runtime.chunks import chunks_of, picked
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.types import GroupRequest, RolloutGroup, Trajectory

MAX_CONCURRENT_CALLS = 64
"""That one worker answers at once: it sleeps in most of them."""


class RolloutPool:
    """Interchangeable engines, by index. Token arrays stay in the object store; the driver sees summaries."""

    LOADED_VERSION = LOADED_VERSION

    def __init__(self, cluster: Cluster, config: RolloutConfig, demands: list[Demand], *worker_args: Any) -> None:
        self._calls = cluster.calls
        self.names = [demand.name for demand in demands]
        self.num_workers = len(demands)
        self.workers_per_engine = config.tensor_parallel_size
        self._workers = [
            cluster.start(RolloutWorker, demand, index, config, *worker_args, max_concurrency=MAX_CONCURRENT_CALLS)
            for index, demand in enumerate(demands)
        ]

    def start(self, deadline_s: float) -> None:
        """Build every engine."""
        self._calls.gather(self._each("start"), what="starting the engines", deadline_s=deadline_s)

    def begin_submit(self, engine: int, requests: Sequence[GroupRequest], policy_version: int) -> Any:
        """Let an engine sample; it refuses when it does not have `policy_version` yet."""
        return self._workers[engine].submit.remote(requests, policy_version)

    def begin_finished(self, engine: int, max_wait_s: float, linger_s: float) -> tuple[Any, Any]:
        """References to what has finished (`list[Finished]`) and to the chunk with its trajectories."""
        told, chunk = self._workers[engine].finished.options(num_returns=2).remote(max_wait_s, linger_s)
        return told, chunk

    def begin_cancel(self, engine: int, group_ids: Sequence[int]) -> Any:
        """Stop sampling these groups."""
        return self._workers[engine].cancel.remote(group_ids)

    def trajectories(self, group: RolloutGroup) -> list[Trajectory]:
        """A group's token arrays, on the driver: for writing down what went wrong, not for training."""
        chunks, places = chunks_of([group.trajectories])
        who = f"group {group.group_id}"
        return picked([fetch(chunk, who=who, what="reading trajectories") for chunk in chunks], places)[0]

    def stop(self, deadline_s: float) -> None:
        """Shut every engine down."""
        self._calls.gather(self._each("stop"), what="stopping the engines", deadline_s=deadline_s)

    def begin_join_weights(self, init_infos: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            name: worker.join_weights.remote(info)
            for name, worker, info in zip(self.names, self._workers, init_infos, strict=True)
        }

    def begin_receive_weights(self, update_info: Mapping[str, Any], policy_version: int) -> dict[str, Any]:
        return self._each("receive_weights", dict(update_info), policy_version)

    def begin_receive_adapter(self, adapter: Any, policy_version: int) -> dict[str, Any]:
        """`adapter` is a reference to what the learner's rank 0 reads."""
        return self._each("receive_adapter", adapter, policy_version)

    def begin_probe(self, token_ids: np.ndarray) -> dict[str, Any]:
        """What every engine says of given tokens."""
        return self._each("probe", token_ids)

    def begin_take_spans(self) -> dict[str, Any]:
        """References to what each engine did since the last call."""
        return self._each("take_spans")

    def _each(self, method: str, *args: Any) -> dict[str, Any]:
        return {
            name: getattr(worker, method).remote(*args) for name, worker in zip(self.names, self._workers, strict=True)
        }
