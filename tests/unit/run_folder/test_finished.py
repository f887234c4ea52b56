"""Finished runs: their configuration with changes, and their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlsys.config.compose import composed, load_config, to_config
from rlsys.errors import ConfigError
from rlsys.run_folder.finished import FinishedRun, overridden


@pytest.fixture
def run(tmp_path: Path) -> FinishedRun:
    overrides = ["rollout.max_response_tokens=33", "data.eval_limit=7", "rewards=[{name: target_length, target: 5}]"]
    OmegaConf.save(OmegaConf.structured(load_config(overrides)), tmp_path / "config.yaml")
    for step in (2, 10):
        folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
    return FinishedRun(tmp_path)


def test_overrides_change_what_they_name_and_nothing_else(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSYS_DATA", "here")
    overrides = ["data=gsm8k", "eval.num_samples=4", "data.eval_limit=3"]
    config = to_config(overridden(run.composed(), composed(overrides), overrides))
    assert config.rollout.max_response_tokens == 33  # the run's
    assert config.rewards == [{"name": "target_length", "target": 5}]
    assert (config.data.eval, config.data.eval_limit) == ("here/gsm8k/test.jsonl", 3)
    assert config.eval.num_samples == 4
    changed = ["reward=math_answer"]
    assert to_config(overridden(run.composed(), composed(changed), changed)).rewards[0]["name"] == "math_answer"


def test_an_experiment_does_not_fit_a_finished_run(run: FinishedRun) -> None:
    overrides = ["experiment=quickstart"]
    with pytest.raises(ConfigError, match="has its configuration already"):
        overridden(run.composed(), composed(overrides), overrides)


def test_its_checkpoints(run: FinishedRun, tmp_path: Path) -> None:
    assert FinishedRun.is_one(tmp_path)
    assert run.checkpoint().name == "step-000010"
    assert run.checkpoint(2).name == "step-000002"
    with pytest.raises(ConfigError, match="has no checkpoint of step 3; there are: 2, 10"):
        run.checkpoint(3)


def test_what_is_no_run_or_of_another_version(tmp_path: Path) -> None:
    assert not FinishedRun.is_one(tmp_path)
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        FinishedRun(tmp_path).composed()
    (tmp_path / "config.yaml").write_text("leaner: {lr: 1}\n")
    with pytest.raises(ConfigError, match="is not of this version of rlsys: Key 'leaner'"):
        FinishedRun(tmp_path).composed()
    with pytest.raises(ConfigError, match="has no checkpoint"):
        FinishedRun(tmp_path).checkpoint()
