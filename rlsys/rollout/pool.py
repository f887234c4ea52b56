"""The pool of rollout workers: prompts are divided among engines, a prompt's samples stay together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.chunks import chunks_of, picked
from rlsys.config import RolloutConfig
from rlsys.errors import DeadlineError, RlsysError, WorkerError
from rlsys.rollout.worker import LOADED_VERSION, RolloutWorker
from rlsys.runtime.calls import fetch, first_done, gather
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.types import GroupRequest, Prompt, RolloutGroup, Sampling, Trajectory, TrajectoryRef, TrajectorySummary

Sample = tuple[TrajectorySummary, TrajectoryRef]
MAX_CONCURRENT_CALLS = 64
"""That one worker answers at once: it sleeps in most of them."""
POLL_S = 30.0
LINGER_S = 1.0
"""How long a worker gathers what finishes before it tells: a synchronous step needs the last response anyway."""


class RolloutPool:
    """Interchangeable engines. Token arrays stay in the object store; the driver sees summaries."""

    LOADED_VERSION = LOADED_VERSION

    def __init__(self, cluster: Cluster, config: RolloutConfig, demands: list[Demand], *worker_args: Any) -> None:
        self._config = config
        self.num_workers = len(demands)
        self.workers_per_engine = config.tensor_parallel_size
        self._workers = {
            demand.name: cluster.start(
                RolloutWorker, demand, index, config, *worker_args, max_concurrency=MAX_CONCURRENT_CALLS
            )
            for index, demand in enumerate(demands)
        }
        self._group_ids = itertools.count()

    def start(self, deadline_s: float) -> None:
        """Build every engine."""
        calls = {name: worker.start.remote() for name, worker in self._workers.items()}
        gather(calls, what="starting the engines", deadline_s=deadline_s)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, policy_version: int) -> list[RolloutGroup]:
        """Sample every prompt under `policy_version`; waits for all and returns one group a prompt, in order."""
        end = time.monotonic() + self._config.deadline_s
        requests = [GroupRequest(next(self._group_ids), 0, p.index, p.token_ids, sampling) for p in prompts]
        names = list(self._workers)
        shares = {name: requests[first :: len(names)] for first, name in enumerate(names)}
        calls = {name: self._workers[name].submit.remote(share, policy_version) for name, share in shares.items()}
        gather(calls, what="rollout", deadline_s=self._config.deadline_s)
        try:
            samples = self._collect(shares, end)
        except RlsysError:
            for name, share in shares.items():
                self._workers[name].cancel.remote([request.group_id for request in share])
            raise
        groups = []
        for prompt, request in zip(prompts, requests, strict=True):
            found = [samples[request.group_id, number] for number in range(sampling.samples_per_prompt)]
            summaries, places = zip(*found, strict=True)
            groups.append(RolloutGroup(request.group_id, prompt, places, summaries))
        return groups

    def trajectories(self, group: RolloutGroup) -> list[Trajectory]:
        """A group's token arrays, on the driver: for writing down what went wrong, not for training."""
        chunks, places = chunks_of([group.trajectories])
        who = f"group {group.group_id}"
        return picked([fetch(chunk, who=who, what="reading trajectories") for chunk in chunks], places)[0]

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

    def _collect(self, shares: Mapping[str, Sequence[GroupRequest]], end: float) -> dict[tuple[int, int], Sample]:
        """Listen to every worker until all its samples are there, by group and number."""
        samples: dict[tuple[int, int], Sample] = {}
        missing = {name: sum(r.sampling.samples_per_prompt for r in share) for name, share in shares.items()}
        polls: dict[Any, tuple[str, Any]] = {}
        while any(missing.values()):
            listened_to = {name for name, _ in polls.values()}
            for name in (name for name, number in missing.items() if number and name not in listened_to):
                told, chunk = self._workers[name].finished.options(num_returns=2).remote(POLL_S, LINGER_S)
                polls[told] = (name, chunk)
            told = first_done(polls, end)
            if told is None:
                late = ", ".join(f"{name} ({number} responses)" for name, number in sorted(missing.items()) if number)
                raise DeadlineError(f"rollout: no answer within {self._config.deadline_s:g} s from {late}")
            name, chunk = polls.pop(told)
            for index, finished in enumerate(fetch(told, who=name, what="rollout")):
                if finished.summary is None:
                    raise WorkerError(f"rollout: {name} failed: {finished.error}")
                samples[finished.group_id, finished.sample] = (finished.summary, TrajectoryRef(chunk, index))
                missing[name] -= 1
        return samples
