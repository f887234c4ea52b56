"""The pool of rollout workers: prompts are divided among engines, a prompt's samples stay together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.config import RolloutConfig
from rlsys.rollout.worker import LOADED_VERSION, RolloutWorker
from rlsys.runtime.calls import fetch, gather
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.types import Prompt, RolloutGroup, Sampling, Trajectory

MAX_CONCURRENT_GROUPS = 4096
"""Calls that one worker holds at once; the engine's own scheduler decides what runs."""


class RolloutPool:
    """Interchangeable engines. Token arrays stay in the object store; the driver sees summaries."""

    LOADED_VERSION = LOADED_VERSION

    def __init__(self, cluster: Cluster, config: RolloutConfig, demands: list[Demand], *worker_args: Any) -> None:
        self._config = config
        self.num_workers = len(demands)
        self.workers_per_engine = config.tensor_parallel_size
        self._workers = {
            demand.name: cluster.start(
                RolloutWorker, demand, index, config, *worker_args, max_concurrency=MAX_CONCURRENT_GROUPS
            )
            for index, demand in enumerate(demands)
        }
        self._group_ids = itertools.count()

    def start(self, deadline_s: float) -> None:
        """Build every engine."""
        calls = {name: worker.start.remote() for name, worker in self._workers.items()}
        gather(calls, what="starting the engines", deadline_s=deadline_s)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, policy_version: int) -> list[RolloutGroup]:
        """Sample every prompt under `policy_version`; returns one group a prompt, in order."""
        workers = itertools.cycle(self._workers.items())
        calls, trajectories = {}, []
        for index, prompt in enumerate(prompts):
            name, worker = next(workers)
            summary, tokens = worker.generate.options(num_returns=2).remote(prompt, sampling, policy_version)
            calls[f"{name} (prompt {prompt.index}, #{index})"] = summary
            trajectories.append(tokens)
        summaries = gather(calls, what="rollout", deadline_s=self._config.deadline_s)
        return [
            RolloutGroup(next(self._group_ids), prompt, tokens, summary)
            for prompt, tokens, summary in zip(prompts, trajectories, summaries.values(), strict=True)
        ]

    def trajectories(self, group: RolloutGroup) -> list[Trajectory]:
        """A group's token arrays, on the driver: for writing down what went wrong, not for training."""
        return fetch(group.trajectories, who=f"group {group.group_id}", what="reading trajectories")

    def stop(self, deadline_s: float) -> None:
        """Shut every engine down."""
        calls = {name: worker.stop.remote() for name, worker in self._workers.items()}
        gather(calls, what="stopping the engines", deadline_s=deadline_s)

    def begin_join_weights(self, init_infos: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            name: worker.join_weights.remote(info)
            for (name, worker), info in zip(self._workers.items(), init_infos, strict=True)
        }

    def begin_receive_weights(self, update_info: Mapping[str, Any], policy_version: int) -> dict[str, Any]:
        return {
            name: worker.receive_weights.remote(dict(update_info), policy_version)
            for name, worker in self._workers.items()
        }
