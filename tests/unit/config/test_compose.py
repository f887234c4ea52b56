"""Defaults, groups and experiments."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from rlsys.algorithms import advantages, aggregation, policy_losses
from rlsys.config.compose import compose_jobs, load_config, to_config
from rlsys.config.option import options
from rlsys.config.overrides import EXPECTED, config_dir, groups, presets
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.preflight.checks import check_config

CHOICES = [(group, choice) for group in groups() for choice in presets(group)]
MISSING = object()

CONTRACT: dict[str, Any] = {
    "seed": 7,
    "run_dir": "some/folder",
    "resume": "auto",
    "model.path": "some/model",
    "data.train": "train.jsonl",
    "data.eval": "eval.jsonl",
    "train.num_steps": 3,
    "train.prompts_per_step": 12,
    "train.samples_per_prompt": 6,
    "train.max_staleness": 0,
    "rollout.num_workers": 2,
    "rollout.tensor_parallel_size": 2,
    "rollout.temperature": 0.7,
    "rollout.max_response_tokens": 99,
    "learner.num_workers": 2,
    "learner.zero_stage": 3,
    "learner.dtype": "bfloat16",
    "learner.lr": 1e-5,
    "learner.microbatch_tokens": 4096,
    "reference.num_workers": 2,
    "algorithm.advantage.name": "grpo",
    "algorithm.policy_loss.name": "ppo_clip",
    "algorithm.kl.coef": 0.05,
    "rewards": [{"name": "target_length", "target": 20, "weight": 0.5}],
    "weights.backend": "gloo",
    "weights.verify": False,
    "eval.every": 5,
    "checkpoint.every": 5,
}


def read(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    return functools.reduce(
        lambda node, name: node[name] if isinstance(node, dict) else getattr(node, name), key.split("."), config
    )


def test_every_promised_key_can_be_set() -> None:
    values = {key: str(value).replace("'", "") for key, value in CONTRACT.items()}
    config = load_config([f"{key}={value}" for key, value in values.items()])
    assert {key: read(config, key) for key in CONTRACT} == CONTRACT


def test_options_of_a_function_are_set_plainly() -> None:
    config = load_config(["algorithm.policy_loss.clip_low=0.1", "data.options.max_operand=9"])
    assert config.algorithm.policy_loss == {"name": "ppo_clip", "clip_low": 0.1}
    assert config.data.options == {"max_operand": 9}


def test_no_experiment_is_chosen_unless_named() -> None:
    plain = load_config([])
    assert plain == load_config(["~experiment"]) != load_config(["experiment=quickstart"])
    plain.algorithm = Config().algorithm
    assert plain == to_config(OmegaConf.structured(Config))  # of all groups only algorithm has a default: grpo
    assert load_config([]).algorithm.kl.coef == 0.04


def test_a_preset_of_an_experiment_is_taken_away_again() -> None:
    assert load_config(["experiment=gsm8k_math", "~data"]).data.train == "addition"


def test_presets_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "rollout").mkdir()
    (tmp_path / "rollout" / "mine.yaml").write_text("max_num_seqs: 7\n")
    (job,) = compose_jobs(["rollout=mine"], flags=["--config-dir", str(tmp_path)], folders=[str(tmp_path)])
    assert job.config.rollout.max_num_seqs == 7
    for path in (str(tmp_path), f"file://{tmp_path}"):
        (job,) = compose_jobs([f"hydra.searchpath=['{path}']", "rollout=mine"])
        assert job.config.rollout.max_num_seqs == 7


def test_every_run_of_a_sweep_is_composed_before_one_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    swept = compose_jobs(["experiment=quickstart", "seed=3,4"], flags=["--multirun"], sweeps=True)
    assert [(job.config.seed, job.name, job.number) for job in swept] == [(3, "quickstart", 0), (4, "quickstart", 1)]
    assert len({job.started for job in swept}) == 1
    (single,) = compose_jobs(["seed=3"])
    assert (single.config, single.name, single.number) == (load_config(["seed=3"]), "run", None)
    with pytest.raises(ConfigError, match=r"train\.num_steps=many: must be a whole number"):
        compose_jobs(["train.num_steps=3,many"], flags=["--multirun"], sweeps=True)
    with pytest.raises(ConfigError, match=r"train\.num_steps: Interpolation key 'nothing' not found"):
        compose_jobs(["train.num_steps=${nothing}"])
    assert not list(tmp_path.iterdir())


def test_hydra_s_resolver_works_in_values(tmp_path: Path) -> None:
    runs = compose_jobs(["run_dir='runs/${hydra:job.num}'", "seed=3,4"], flags=["--multirun"], sweeps=True)
    assert [job.config.run_dir for job in runs] == ["runs/0", "runs/1"]


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda value: value)
def test_every_choice_of_every_group_composes_and_passes_the_checks(group: str, choice: str) -> None:
    check_config(load_config([f"{group}={choice}"]))


def test_an_override_beats_the_experiment() -> None:
    assert load_config(["experiment=quickstart", "train.num_steps=3"]).train.num_steps == 3


def test_gsm8k_is_found_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSYS_DATA", "here")
    assert load_config(["data=gsm8k"]).data.train == "here/gsm8k/train.jsonl"


def stated(path: Path) -> dict[str, Any]:
    """What a file under `configs/` sets, by dotted key from the root."""
    content = OmegaConf.load(path)
    assert isinstance(content, DictConfig)
    prefix = "" if "@package _global_" in path.read_text() else f"{path.parent.name}."
    raw = OmegaConf.to_container(content, resolve=False)
    assert isinstance(raw, dict)
    return {f"{prefix}{key}": value for key, value in leaves(raw) if key not in ("defaults", "hydra")}


def leaves(node: dict[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in node.items():
        if isinstance(value, dict) and value and f"{prefix}{key}" != "hydra":
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def test_no_file_restates_a_default() -> None:
    defaults = OmegaConf.to_container(OmegaConf.structured(Config))
    files = sorted(config_dir().glob("*/*.yaml"))
    assert files
    set_by_groups = {key for path in files if path.parent.name != "experiment" for key in stated(path)}
    for path in files:
        for key, value in stated(path).items():
            if path.parent.name == "experiment" and key in set_by_groups:
                continue  # back to the default, against what a group file says
            default: Any = defaults
            for name in key.split("."):
                default = default.get(name, MISSING) if isinstance(default, dict) else MISSING
            assert value != default, f"{path.parent.name}/{path.name} restates {key}={value}"


REGISTRIES = {"advantage": advantages, "policy_loss": policy_losses, "aggregation": aggregation}


def test_no_preset_restates_an_option_s_default() -> None:
    """`policy_loss: {clip_low: 0.2}` says what ppo_clip does by itself."""
    for path in sorted((config_dir() / "algorithm").glob("*.yaml")):
        whole = load_config([f"algorithm={path.stem}"]).algorithm
        for key, value in stated(path).items():
            _, node, *option = key.split(".")
            if node in REGISTRIES and option and option != ["name"]:
                function = REGISTRIES[node].registry.get(str(getattr(whole, node)["name"]))
                default = inspect.signature(function).parameters[option[0]].default
                assert value != default, f"{path.name} restates {key}={value}"


def test_no_preset_is_empty() -> None:
    files = sorted(config_dir().glob("*/*.yaml"))
    assert [path for path in files if not OmegaConf.load(path)] == []


def test_the_top_file_holds_no_values() -> None:
    top = OmegaConf.to_container(OmegaConf.load(config_dir() / "config.yaml"), resolve=False)
    assert isinstance(top, dict)
    assert set(top) == {"defaults", "hydra"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rewards=my_reward.py:f", "rewards=my_reward.py:f: must be a list of mappings, such as [{name: NAME}]"),
        ("train.num_steps=[1]", "train.num_steps=[1]: must be a whole number (training steps"),
        ("eval.every=often", "eval.every=often: must be a whole number"),
        ("rollout.dtype=[float32]", "rollout.dtype=[float32]: must be text"),
        ("algorithm.kl=3", "algorithm.kl is a section, not an option; its options are algorithm.kl.coef, "),
        ("experiment=[a, b]", "experiment=[a, b]: choose one name (known: "),
    ],
)
def test_a_value_of_another_type_is_answered_with_what_the_option_takes(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config([override])


def test_every_type_of_option_has_words() -> None:
    assert {option.type.partition(" | ")[0] for option in options(Config())} - {"Any"} == set(EXPECTED)


@pytest.mark.parametrize(
    ("overrides", "learner", "critic"),
    [
        ([], "float32", "float32"),
        (["cluster.num_gpus=2"], "bfloat16", "bfloat16"),
        (["cluster.num_gpus=2", "learner.dtype=float32"], "float32", "bfloat16"),
        (["learner.dtype=bfloat16"], "bfloat16", "float32"),
    ],
)
def test_the_dtype_is_the_devices_unless_it_is_asked_for(overrides: list[str], learner: str, critic: str) -> None:
    config = load_config(overrides)
    assert (config.learner.dtype, config.critic.dtype, config.engine_dtype) == (learner, critic, learner)
