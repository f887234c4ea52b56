"""Runs that were cut off and resumed, against one that was not: the same prompts, responses and metrics."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.runs import SMALL, read_metrics

STEPS = 8
GIVEN = ("train.max_staleness=0", "rollout.seeded=true", "checkpoint.every=3", "algorithm.kl.coef=0.05")
# What is measured, and not computed.
MEASURED = ("time/", "throughput/", "memory/", "idle/", "schedule/", "scoring/")


def _train(folder: Path, name: str, *more: str) -> subprocess.Popen[bytes]:
    given = [*SMALL, *GIVEN, f"train.num_steps={STEPS}", f"model.cache_dir={folder}/models", f"run_dir={folder / name}"]
    with (folder / f"{name}.log").open("ab") as log:
        command = [sys.executable, "-m", "rlsys.cli", "train", *given, *more]
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def _rollouts(run_dir: Path, step: int) -> list[dict[str, Any]]:
    lines = (run_dir / "rollouts" / f"step-{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _computed(row: dict[str, Any]) -> dict[str, float]:
    numbers = {name: value for name, value in row.items() if isinstance(value, float)}
    return {name: value for name, value in numbers.items() if not (name.startswith(MEASURED) or name.endswith("_s"))}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Synchronous and seeded. It is killed two steps after its checkpoint, somewhere in the third."""
    assert _train(tmp_path, "whole").wait(timeout=300) == 0
    killed = _train(tmp_path, "killed")
    deadline = time.monotonic() + 300
    while _last_step(tmp_path / "killed") < 5:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert _train(tmp_path, "killed", "resume=auto").wait(timeout=300) == 0
    assert "resuming from" in (tmp_path / "killed.log").read_text()

    whole, resumed = (read_metrics(tmp_path / name) for name in ("whole", "killed"))
    assert [row["step"] for row in whole] == [row["step"] for row in resumed] == list(range(STEPS + 1))
    for step in range(1, STEPS + 1):
        expected, found = (_rollouts(tmp_path / name, step) for name in ("whole", "killed"))
        for which in ("prompt_index", "response"):
            assert [row[which] for row in found] == [row[which] for row in expected], (step, which)
    for row, again in zip(whole[1:], resumed[1:], strict=True):
        assert _computed(again) == pytest.approx(_computed(row), rel=1e-4, abs=1e-6), row["step"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_whose_folder_is_gone_goes_on_from_its_mirror(tmp_path: Path) -> None:
    mirror = f"checkpoint.mirror=file://{tmp_path}/elsewhere"
    assert _train(tmp_path, "run", mirror, "train.num_steps=5").wait(timeout=300) == 0
    shutil.rmtree(tmp_path / "run")
    assert _train(tmp_path, "run", mirror).wait(timeout=300) == 1  # of another run, as far as it knows
    assert _train(tmp_path, "run", mirror, "resume=auto").wait(timeout=300) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [6, 7, 8]
    names = sorted(path.name for path in (tmp_path / "elsewhere" / "checkpoints").iterdir())
    assert names == ["step-000006", "step-000008"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_checkpoint_of_the_version_before_manifests_is_continued(tmp_path: Path) -> None:
    """Written by commit f92e655, after two steps of a very small model."""
    with tarfile.open(Path(__file__).parent / "data" / "before_manifests.tgz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    sizes = {"num_layers": 1, "hidden_size": 32, "num_heads": 1, "num_kv_heads": 1, "intermediate_size": 32}
    model = [f"model.build.{name}={size}" for name, size in sizes.items()]
    then = ["resume=auto", "train.num_steps=4", "algorithm.kl.coef=0", "rollout.seeded=false", "checkpoint.every=0"]
    assert _train(tmp_path, "run", *model, *then).wait(timeout=300) == 0, (tmp_path / "run.log").read_text()
    assert "after step 2" in (tmp_path / "run.log").read_text()
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [3, 4]


def _last_step(run_dir: Path) -> int:
    """The last step that is recorded; 0 before there is one."""
    rows = read_metrics(run_dir) if (run_dir / "metrics.jsonl").exists() else []
    return int(rows[-1]["step"]) if rows else 0
