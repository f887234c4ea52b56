"""What `rlsys eval` evaluates: a model, an adapter, a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlsys.commands.evaluate import _target_of, config_of
from rlsys.config.compose import load_config
from rlsys.errors import ConfigError
from rlsys.rollout.setup import adapter_slots


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "base_model_name_or_path": "the/base"}))
    return folder


def test_a_model(adapter: Path) -> None:
    config = config_of("org/model", ["eval.num_samples=2"])
    assert (config.model.path, config.model.adapter, config.eval.num_samples) == ("org/model", None, 2)
    assert config.rollout.max_response_tokens == 64  # the default's, not the quickstart's
    assert config.rollout.seeded
    assert adapter_slots(config, ()) is None
    with pytest.raises(ConfigError, match="--step chooses a checkpoint of a run, and 'org/model' is not"):
        config_of("org/model", [], step=3)


def test_the_target_among_the_words_of_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "lr=1").mkdir(parents=True)
    for words in (["runs/lr=1", "seed=3"], ["seed=3", "runs/lr=1"]):
        assert _target_of(words) == ("runs/lr=1", ["seed=3"])
    assert _target_of(["~data", "~algorithm.advantage.eps", "~/no/run", "seed=3"]) == (
        "~/no/run",
        ["~data", "~algorithm.advantage.eps", "seed=3"],
    )
    assert _target_of(["seed=3"]) == (None, ["seed=3"])
    assert _target_of([]) == (None, [])


def test_settings_are_the_defaults_unless_an_experiment_is_named(adapter: Path) -> None:
    def limit(*overrides: str) -> int:
        return config_of(None, overrides).rollout.max_response_tokens

    assert limit("model.path=org/model") == limit(f"model.adapter={adapter}") == 64
    assert limit("experiment=quickstart") == limit("experiment=quickstart", "model.path=org/model") == 6
    for nothing in ([], ["eval.num_samples=2"], ["~experiment"]):
        with pytest.raises(ConfigError, match="no model, run or experiment is given"):
            limit(*nothing)
    with pytest.raises(ConfigError, match=r"unknown configuration key 'eval\.num_sample'"):
        limit("eval.num_sample=2")


@pytest.mark.parametrize("target", ["org/model", "run"])
def test_two_models_are_not_one(target: str, tmp_path: Path, adapter: Path) -> None:
    if target == "run":
        OmegaConf.save(OmegaConf.structured(load_config([])), tmp_path / "config.yaml")
        target = str(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.path names another model: give one of the two"):
        config_of(target, ["model.path=org/other"])


def test_an_adapter_brings_its_base_and_rank(adapter: Path) -> None:
    for config in (
        config_of(str(adapter), []),
        config_of(None, [f"model.adapter={adapter}", "model.path=the/base"]),
        config_of("the/base", [f"model.adapter={adapter}"]),
    ):
        assert (config.model.path, config.model.adapter, config.learner.lora.rank) == ("the/base", str(adapter), 4)
        slots = adapter_slots(config, ())
        assert slots is not None
        assert slots.loaded == str(adapter)


def test_a_recipe_s_own_adapters_are_not_asked_of_a_model_without() -> None:
    config = config_of("org/model", ["experiment=open_r1_math_lora"])
    assert adapter_slots(config, ()) is None


def test_a_run_s_checkpoint(tmp_path: Path, adapter: Path) -> None:
    OmegaConf.save(OmegaConf.structured(load_config(["learner.lora.rank=4"])), tmp_path / "config.yaml")
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        (folder / "adapter").mkdir(parents=True)
        (folder / "state.json").write_text(f'{{"step": {step}, "prompt_cursor": 0}}')
        (folder / "adapter" / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    newest, first = config_of(str(tmp_path), ["data.eval_limit=3"]), config_of(str(tmp_path), [], step=1)
    assert newest.model.adapter == str(tmp_path / "checkpoints" / "step-000002" / "adapter")
    assert first.model.adapter == str(tmp_path / "checkpoints" / "step-000001" / "adapter")
    assert (newest.data.eval_limit, newest.run_dir) == (3, None)
