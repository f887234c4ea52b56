"""Command-line overrides, checked before Hydra sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.config.compose import load_config
from rlsys.config.overrides import flags_first, known_keys, normalise
from rlsys.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.num_step=3", "unknown configuration key 'train.num_step': did you mean 'train.num_steps'?"),
        ("learner.learning_rate=1", "unknown configuration key 'learner.learning_rate'"),
        ("+rollout.temprature=1", "did you mean 'rollout.temperature'?"),
        ("~train.num_stepss=1", "did you mean 'train.num_steps'?"),
        ("experimet=quickstart", "did you mean 'experiment'?"),
        ("experiment=quikstart", "experiment=quikstart: did you mean 'quickstart'? (known: "),
        ("data=gsm9k", "data=gsm9k: did you mean 'gsm8k'? (known: addition, gsm8k)"),
        ("reward=target_length,exact", "reward=exact: "),
        ("experiment=null", "~experiment"),  # Hydra takes a group away so, and fails on null
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest_match(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        normalise([override])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "train.num_steps=3",
        "train.num_steps=1,2,3",
        "++rollout.temperature=0.5",
        "learner.betas=[0.9,0.95]",
        "rewards=[{name: target_length, target: 9}]",
        "algorithm.policy_loss={name: ppo_clip, clip_low: 0.1}",
        "data=addition,gsm8k",
        "reward@_global_=target_length",
        "hydra.verbose=true",
        "hydra/job_logging=none",
        "--cfg",
        "job",
        "--multirun",
        "~experiment",
    ],
)
def test_what_is_known_passes_unchanged(override: str) -> None:
    assert normalise([override]) == [override]


@pytest.mark.parametrize("prefix", ["", "+", "++"])
@pytest.mark.parametrize(
    "option", ["algorithm.policy_loss.clip_low=0.1", "algorithm.advantage.name=grpo", "data.options.max_operand=9"]
)
def test_options_of_functions_are_additions_however_written(prefix: str, option: str) -> None:
    assert normalise([f"{prefix}{option}"]) == [f"++{option}"]


def test_known_keys_stop_at_a_function_s_own_options() -> None:
    known = known_keys()
    assert {"train", "train.num_steps", "model.build.tokenizer.kind", "algorithm.policy_loss", "rewards"} <= set(known)
    assert not any(key.startswith("algorithm.policy_loss.") for key in known)
    assert len(known) == len(set(known))


def test_flags_may_stand_anywhere() -> None:
    given = ["seed=0,1", "--multirun", "~experiment", "train.num_steps=1", "--cfg", "job"]
    assert flags_first(given) == ["--multirun", "--cfg", "job", "seed=0,1", "~experiment", "train.num_steps=1"]


def test_a_source_replaces_another_wholly(tmp_path: Path) -> None:
    """Of two mappings Hydra would keep the keys of both, and refuse the second's new ones."""
    (tmp_path / "own.yaml").write_text(
        "# @package _global_\ndata:\n  train: {name: org/maths, subset: main}\n  eval: null\n"
    )
    given = "data.train={name: mine.jsonl, columns: {answer: gold}}"
    config = load_config([f"experiment={tmp_path}/own.yaml", given])
    assert config.data.train == {"name": "mine.jsonl", "columns": {"answer": "gold"}}
    several = load_config([f"experiment={tmp_path}/own.yaml", "data.train=[a.jsonl, {name: b, weight: 2}]"])
    assert several.data.train == ["a.jsonl", {"name": "b", "weight": 2}]
    assert load_config([f"experiment={tmp_path}/own.yaml", "data.train=a.jsonl"]).data.train == "a.jsonl"
