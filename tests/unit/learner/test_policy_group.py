"""The driver's side of the policy's ranks, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.config.learner_schema import LearnerConfig
from rlsys.learner.policy_group import PolicyGroup


class Worker:
    """A rank that answers each call with its number and the method's name."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *_: (f"{method} of rank {self._rank}", [7]))


class Cluster:
    """Two workers whose calls are their answers."""

    def __init__(self) -> None:
        self.calls = self
        self.gathered: list[Mapping[str, Any]] = []

    def start(self, kind: type, demand: Any, rank: int, setup: Any) -> Worker:
        return Worker(rank)

    async def gather(self, calls: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        self.gathered.append(calls)
        return calls


@pytest.mark.parametrize(
    ("backend", "info", "num_asked"), [("ipc", ("export_weights of rank 0", [7]), 2), ("nccl", ({}, ()), 0)]
)
def test_over_ipc_every_rank_exports_the_weights_at_each_broadcast(backend: str, info: Any, num_asked: int) -> None:
    cluster = Cluster()
    demands = [SimpleNamespace(name=f"learner/{rank}") for rank in range(2)]
    group = PolicyGroup(cluster, SimpleNamespace(learner=LearnerConfig()), demands)  # type: ignore[arg-type]
    assert asyncio.run(group.weight_update_info(backend)) == info
    assert sum(len(calls) for calls in cluster.gathered) == num_asked
