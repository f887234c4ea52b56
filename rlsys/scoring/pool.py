"""The pool of reward workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlsys.batch import balance
from rlsys.chunks import chunks_of
from rlsys.config import ScoringConfig
from rlsys.runtime.calls import gather
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.scoring.worker import RewardWorker
from rlsys.types import Reward, RolloutGroup


class RewardPool:
    """Interchangeable workers; each scores a share of the groups."""

    def __init__(self, cluster: Cluster, config: ScoringConfig, demands: list[Demand], *worker_args: Any) -> None:
        self._config = config
        self._workers = {demand.name: cluster.start(RewardWorker, demand, config, *worker_args) for demand in demands}

    def start(self, deadline_s: float) -> None:
        """Wait until every worker has loaded its functions."""
        calls = {name: worker.start.remote() for name, worker in self._workers.items()}
        gather(calls, what="starting the reward workers", deadline_s=deadline_s)

    def score(self, groups: Sequence[RolloutGroup], step: int) -> tuple[list[list[Reward]], dict[str, float]]:
        """Rewards of every trajectory (one list a group, in order) and the means of what functions logged."""
        shares = balance([len(group.summaries) for group in groups], len(self._workers))
        calls, taken = {}, {}
        for (name, worker), share in zip(self._workers.items(), shares, strict=True):
            if share:
                chosen = [groups[i] for i in share]
                chunks, places = chunks_of(group.trajectories for group in chosen)
                calls[name] = worker.score.remote([group.prompt for group in chosen], step, places, *chunks)
                taken[name] = share
        out: list[list[Reward]] = [[] for _ in groups]
        logged: dict[str, list[float]] = {}
        for name, (rewards, metrics) in gather(calls, what="scoring", deadline_s=self._config.deadline_s).items():
            for index, group_rewards in zip(taken[name], rewards, strict=True):
                out[index] = group_rewards
            for key, value in metrics.items():
                logged.setdefault(key, []).append(value)
        return out, {key: sum(values) / len(values) for key, values in logged.items()}
