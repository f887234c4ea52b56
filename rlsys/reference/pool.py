"""The pool of reference workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlsys.batch import balance
from rlsys.config import ReferenceConfig
from rlsys.reference.worker import ReferenceWorker
from rlsys.runtime.calls import gather
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.types import RolloutGroup


class ReferencePool:
    """Interchangeable workers; each takes a share of the groups, balanced by tokens."""

    def __init__(self, cluster: Cluster, config: ReferenceConfig, demands: list[Demand], *worker_args: Any) -> None:
        self._config = config
        self._workers = {
            demand.name: cluster.start(ReferenceWorker, demand, config, *worker_args) for demand in demands
        }

    def start(self, deadline_s: float) -> None:
        """Wait until every worker has its model."""
        calls = {name: worker.ping.remote() for name, worker in self._workers.items()}
        gather(calls, what="starting the reference", deadline_s=deadline_s)

    def logprobs(self, groups: Sequence[RolloutGroup]) -> tuple[Any, ...]:
        """One reference per group to its trajectories' log-probabilities (list of [L] float32); waits for all."""
        shares = balance([sum(s.num_tokens for s in group.summaries) for group in groups], len(self._workers))
        out: list[Any] = [None] * len(groups)
        calls = {}
        for (name, worker), share in zip(self._workers.items(), shares, strict=True):
            if not share:
                continue
            done, *refs = worker.logprobs.options(num_returns=1 + len(share)).remote(
                *(groups[i].trajectories for i in share)
            )
            calls[name] = done
            for index, ref in zip(share, refs, strict=True):
                out[index] = ref
        gather(calls, what="reference log-probabilities", deadline_s=self._config.deadline_s)
        return tuple(out)
