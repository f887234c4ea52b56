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
from rlsys.runtime.findings import Finding, Level


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
