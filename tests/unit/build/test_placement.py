"""How many threads a worker gets on a machine that roles share."""

from __future__ import annotations

import os

import pytest

from rlsys.build.placement import rollout_demand, worker_demands
from rlsys.config.compose import load_config


def threads(monkeypatch: pytest.MonkeyPatch, cores: int, *overrides: str) -> dict[str, str]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    wanted = worker_demands(load_config(list(overrides)))
    return {role: wanted[role][0].env["OMP_NUM_THREADS"] for role in ("rollout", "learner", "reference")}


def test_synchronous_roles_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads(monkeypatch, 8) == {"rollout": "8", "learner": "8", "reference": "8"}
    two = threads(monkeypatch, 8, "rollout.num_workers=2", "rollout.tensor_parallel_size=2", "learner.num_workers=2")
    assert two == {"rollout": "2", "learner": "4", "reference": "8"}


def test_roles_that_work_at_the_same_time_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads(monkeypatch, 2, "train.max_staleness=1") == {"rollout": "1", "learner": "1", "reference": "1"}
    three = threads(monkeypatch, 8, "train.max_staleness=1", "rollout.num_workers=3")
    assert three == {"rollout": "2", "learner": "2", "reference": "2"}
    given = threads(monkeypatch, 8, "train.max_staleness=1", "learner.num_threads=5")
    assert given == {"rollout": "4", "learner": "5", "reference": "4"}


def test_an_engine_that_joins_shares_the_cpus_of_a_local_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_config(["rollout.num_workers=2", "rollout.num_cpus=3"])
    assert [rollout_demand(config, engine).num_cpus for engine in (0, 1, 2)] == [3, 3, 0]
    assert rollout_demand(config, 2).env == rollout_demand(config, 0).env
    joined = load_config(["cluster.address=10.0.0.1:6379", "rollout.num_cpus=3"])
    assert rollout_demand(joined, 2).num_cpus == 3
    gpus = load_config(["cluster.num_gpus=3", "rollout.tensor_parallel_size=2", "algorithm.kl.coef=0"])
    assert rollout_demand(gpus, 1).num_gpus == 2
