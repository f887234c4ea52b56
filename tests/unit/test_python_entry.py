"""The entry from Python: `from rlsys import evaluate_policy, load_config, train_policy`."""

from __future__ import annotations

import contextlib
import inspect
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import rlsys
from rlsys.config import compose
from rlsys.errors import ConfigError


def test_importing_rlsys_loads_nothing() -> None:
    script = "import sys; before = set(sys.modules); from rlsys import evaluate_policy, load_config, train_policy; "
    script += "print(*sorted(name for name in set(sys.modules) - before if '.' not in name))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= {"rlsys", *sys.stdlib_module_names}


def test_the_names_are_functions_with_types_and_help() -> None:
    for name in rlsys.__all__:
        function = getattr(rlsys, name)
        assert inspect.isfunction(function)
        assert "return" in function.__annotations__
        assert len(inspect.getdoc(function) or "") > 80


def test_load_config() -> None:
    overrides = ["experiment=quickstart", "train.num_steps=3"]
    assert rlsys.load_config(*overrides) == compose.load_config(overrides)
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        rlsys.load_config("experiment=quikstart")


@pytest.fixture
def config(tmp_path: Path, model_folder: Path) -> Any:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    return rlsys.load_config(
        f"model.path={model_folder}",
        f"data.train={tmp_path}/rows.jsonl",
        "data.eval=null",
        "rollout.max_response_tokens=8",
        f"run_dir={tmp_path}/run",
    )


def test_train_checks_prepares_and_returns_the_run_s_folder(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Any] = []

    class Opened:
        async def supervise(self, training: Any) -> None:
            await training

    @contextlib.asynccontextmanager
    async def open_run(prepared: Any, run_dir: Path, display: Any, preimport: Any) -> AsyncIterator[Opened]:
        events.append((prepared.config.run_dir, (run_dir / "config.yaml").is_file()))
        yield Opened()
        events.append("closed")

    async def train(run: Any) -> None:
        events.append(type(run))

    monkeypatch.setattr("rlsys.train.open_run", open_run)
    monkeypatch.setattr("rlsys.train.train", train)
    caplog.set_level(logging.INFO, "rlsys")
    run_dir = tmp_path / "run"
    assert rlsys.train_policy(config) == run_dir
    assert events == [(str(run_dir), True), Opened, "closed"]
    assert OmegaConf.load(run_dir / "config.yaml").data.train == f"{tmp_path}/rows.jsonl"
    assert (run_dir / "tokenizer" / "tokenizer_config.json").is_file()
    assert "first prompt  '1+1='\n" in (run_dir / "start.txt").read_text()
    assert [f"run {run_dir}: starting Ray" in caplog.text, f"checkpoints in {run_dir}" in caplog.text] == [True, True]


def test_a_run_holds_its_folder_and_unnamed_ones_of_one_second_get_two(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def train(prepared: Any, run_dir: Path, *_: Any) -> None:
        with pytest.raises(ConfigError, match=f"{run_dir} is in use by another run"):
            rlsys.train_policy(replace(config, run_dir=str(run_dir), resume="auto"))
        assert prepared.config.run_dir == str(run_dir)
        folders.append(run_dir)

    monkeypatch.setattr("rlsys.commands.train._train", train)
    monkeypatch.setattr("time.strftime", lambda *_: "20260102-030405")
    monkeypatch.setenv("RLSYS_RUNS", str(tmp_path))
    for _ in range(2):
        rlsys.train_policy(replace(config, run_dir=None))
    rlsys.train_policy(config)
    assert folders == [tmp_path / "run" / name for name in ("20260102-030405", "20260102-030405-2")] + [
        tmp_path / "run"
    ]


def test_what_is_wrong_is_raised_before_anything_is_written(config: Any, tmp_path: Path) -> None:
    config.train.samples_per_prompt = 1
    with pytest.raises(ConfigError, match="needs at least 2"):
        rlsys.train_policy(config)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="already holds a run"):
        rlsys.train_policy(config)


def test_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(target: str, overrides: Any, *, step: int | None) -> Any:
        return "prepared", [target, *overrides, step]

    monkeypatch.setattr("rlsys.commands.evaluate.evaluate_target", evaluated)
    assert rlsys.evaluate_policy("runs/mine", "eval.num_samples=2", step=3) == ["runs/mine", "eval.num_samples=2", 3]
