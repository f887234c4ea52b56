"""`rlsys doctor` from the command line, in this process; it must not start Ray."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray

from rlsys.cli import execute
from rlsys.errors import ConfigError
from rlsys.runtime import node_checks
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.findings import Finding, Level
from rlsys.runtime.limits import Limits
from rlsys.runtime.survey import Node


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


def small(model: Path) -> list[str]:
    Path("rows.jsonl").write_text(json.dumps({"prompt": "3+1=", "answer": "4"}) + "\n")
    sizes = ["rollout.max_response_tokens=8", "train.prompts_per_step=2", "learner.num_workers=2"]
    return [f"model.path={model}", "data.train=rows.jsonl", "data.eval=null", *sizes]


def test_the_machine_alone(capsys: pytest.CaptureFixture[str]) -> None:
    execute(["doctor"])
    printed = capsys.readouterr().out
    assert "\nthis machine\nok   vLLM " in printed
    assert "\nthe run\n" not in printed
    assert "\n0 checks fail, " in printed
    assert list(Path().iterdir()) == []


def test_the_plan_of_a_run(capsys: pytest.CaptureFixture[str], model_folder: Path) -> None:
    execute(["doctor", *small(model_folder), "run_dir=mine"])
    printed = capsys.readouterr().out
    assert "ok   configuration " in printed
    assert "├─ learner/1    1 CPU, " in printed
    assert "└─ reference/0  1 CPU, " in printed
    assert "memory of the run  fits: about " in printed
    assert "\ntcp   engines  " in printed
    assert "\nseconds per step\nabout " in printed
    assert not Path("mine").exists()


def test_what_fails_ends_with_1_and_train_refuses_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    broken = Finding("ports", Level.FAIL, "none is free", "free one")
    monkeypatch.setattr(node_checks, "loopback_port", lambda: broken)
    with pytest.raises(SystemExit) as ended:
        execute(["doctor"])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "FAIL ports              none is free: free one" in printed
    assert "\n1 checks fail, " in printed
    with pytest.raises(ConfigError, match=r"^ports: none is free: free one$"):
        execute(["train", "--dry-run", *small(model_folder)])


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["cluster.num_gpus=3", "learner.dtype=float32"], "FAIL GPUs               PyTorch sees 0 GPUs, but"),
        (["learner.microbatch_tokens=4"], "FAIL configuration      learner.microbatch_tokens=4 is smaller"),
    ],
)
def test_a_run_that_cannot_be(
    capsys: pytest.CaptureFixture[str], model_folder: Path, overrides: Sequence[str], found: str
) -> None:
    with pytest.raises(SystemExit):
        execute(["doctor", *small(model_folder), *overrides])
    assert found in capsys.readouterr().out


def test_a_run_that_is_too_large_for_the_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    monkeypatch.setattr("rlsys.runtime.limits._memory_limits", lambda _: [(10**9, 5 * 10**8)])
    with pytest.raises(SystemExit):
        execute(["doctor", *small(model_folder)])
    printed = capsys.readouterr().out
    assert re.search(r"^FAIL memory of the run +about [0-9.]+ GB are needed, more than", printed, re.MULTILINE)
    assert "more than the 1.0 GB that there are: the largest is rollout" in printed
    with pytest.raises(ConfigError, match=r"memory of the run: about [0-9.]+ GB.*lower rollout.kv_cache_gib"):
        execute(["train", "--dry-run", *small(model_folder)])


def test_a_run_with_gpus(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    execute(["doctor", *small(model_folder), "cluster.num_gpus=3", "algorithm.kl.coef=0"])
    printed = capsys.readouterr().out
    assert "├─ learner/1    1 CPU, 1 GPU, " in printed
    assert "\nmemory of each GPU, MB (predicted; no GPU has confirmed it yet)\n" in printed
    assert re.search(r"^learner +2 .*[0-9]$", printed, re.MULTILINE)
    assert re.search(r"^note +memory of a GPU +learner needs about [0-9.]+ GB", printed, re.MULTILINE)
    assert "not estimated: no GPU has been measured" in printed


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """Join a cluster whose nodes are those of the list."""
    nodes: list[Node] = []
    monkeypatch.setattr(Cluster, "connect", lambda *_: None)
    monkeypatch.setattr(Cluster, "close", lambda *_: None)
    monkeypatch.setattr("rlsys.runtime.survey.survey", lambda _: nodes)
    return nodes


def test_a_cluster_node_by_node(capsys: pytest.CaptureFixture[str], joined: list[Node], model_folder: Path) -> None:
    late = Finding("clock", Level.WARN, "late", "set it")
    limits = Limits(4, 4, 8 * 10**9, 6 * 10**9, 8 * 10**9)
    joined += [Node("a (10.0.0.1)", 4, 0, limits), Node("b (10.0.0.2)", 8, 0, limits, (late,))]
    execute(["doctor", *small(model_folder), "cluster.address=head:6379"])
    printed = capsys.readouterr().out
    assert "ok   connection         2 nodes at head:6379 (from cluster.address)" in printed
    assert "\nnode b (10.0.0.2)\nwarn clock              late: set it\n" in printed
    assert re.search(r"^b \(10\.0\.0\.2\)  4 cores, 8\.0 GB\n[├└]─ ", printed, re.MULTILINE)
    assert "GB on all nodes together, which have 12.0 GB free" in printed


def test_a_cluster_without_room_or_an_answer(
    capsys: pytest.CaptureFixture[str], joined: list[Node], monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    joined.append(Node("a", 2, 0, None))
    with pytest.raises(SystemExit):
        execute(["doctor", *small(model_folder), "cluster.address=head:6379"])
    assert re.search(r"^FAIL placement +there is no room for learner/1, ", capsys.readouterr().out, re.MULTILINE)

    def refuse(*_: object) -> None:
        raise ConfigError("nobody answers at head:6379")

    monkeypatch.setattr(Cluster, "connect", refuse)
    with pytest.raises(SystemExit):
        execute(["doctor", "cluster.address=head:6379"])
    assert "FAIL connection         nobody answers at head:6379" in capsys.readouterr().out
