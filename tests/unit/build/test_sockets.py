"""The plan of listening sockets; tests/integration/test_sockets.py compares it with a real run."""

from __future__ import annotations

import pytest

from rlsys.build.placement import worker_demands
from rlsys.build.sockets import EVERY, LOOPBACK, NODE, planned_sockets
from rlsys.config.compose import load_config


def owners(*overrides: str) -> list[str]:
    config = load_config(list(overrides))
    return [f"{one.kind} {one.owner}" for one in planned_sockets(config, worker_demands(config))]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_local_ray_has_sockets_of_its_own_and_forks_workers() -> None:
    assert "unix raylet" in owners()
    assert "unix fork servers" in owners()
    joined = owners("cluster.address=head:6379")
    assert joined == ["tcp driver and 4 workers", "tcp learner ranks", "tcp learner/0 and engines", "tcp engines"]


def test_roles_and_channels() -> None:
    assert "tcp critic ranks" in owners("algorithm=ppo")
    one_gpu = ["cluster.num_gpus=1", "weights.backend=ipc", "learner.dtype=bfloat16"]
    assert "tcp learner/0 and engines" not in owners(*one_gpu)


@pytest.mark.parametrize(
    ("options", "node", "calls"), [([], LOOPBACK, LOOPBACK), (["cluster.address=h:1"], NODE, EVERY)]
)
def test_a_local_run_listens_on_loopback_alone(options: list[str], node: str, calls: str) -> None:
    config = load_config(options)
    found = {one.owner: one.address for one in planned_sockets(config, worker_demands(config)) if one.kind == "tcp"}
    assert found["learner ranks"] == found["learner/0 and engines"] == node
    assert found["driver and 4 workers"] == calls
    assert options or set(found.values()) == {LOOPBACK}
