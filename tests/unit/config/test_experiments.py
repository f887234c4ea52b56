"""The experiments say what their sources say. (That each composes and passes the checks: test_compose.py.)"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from rlsys.algorithms.requirements import corrections_of, needs_critic
from rlsys.commands.importers.choose import choose, options_of
from rlsys.commands.importers.recipe import RunSize
from rlsys.commands.importers.recipe_file import read
from rlsys.commands.importers.translate import translate
from rlsys.config.compose import load_config
from rlsys.config.overrides import config_dir
from rlsys.config.schema import Config

RECIPES = Path(__file__).parents[1] / "commands" / "importers" / "recipes"
EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@functools.cache
def experiment(name: str) -> Config:
    return load_config([f"experiment={name}"])


def value(config: Config, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


BY_HAND: dict[str, dict[str, Any]] = {
    "trl_zen": {
        "train.prompts_per_step": 2,  # 4 * 2 completions in groups of 4
        "train.num_steps": 24,  # 3 epochs of 17 rows // 2
        "algorithm.kl.coef": 0.0,
    },
    "smoltldr_length_lora": {
        "train.samples_per_prompt": 4,
        "train.prompts_per_step": 4,  # 8 * 2 completions
        "learner.lora.rank": 16,
        "learner.lora.alpha": 32.0,
        "learner.lora.target_modules": "all-linear",
        "data.max_prompt_tokens": 512,
        "rollout.max_response_tokens": 96,
        "learner.lr": 2e-5,
        "algorithm.kl.coef": 0.04,
        "rewards": [{"name": "target_length", "weight": 1.0, "target": 50}],
    },
    "dapo_math": {
        "train.prompts_per_step": 512,
        "train.samples_per_prompt": 16,
        "train.minibatches_per_step": 16,  # 512 * 16 samples in mini-batches of 512
        "learner.lr": 1e-6,
        "learner.warmup_steps": 320,  # 20 steps of 16 updates
        "algorithm.kl.coef": 0.0,
        "algorithm.policy_loss": {"name": "ppo_clip", "clip_high": 0.28},
        "algorithm.aggregation": {"name": "token_mean"},
        "algorithm.groups.zero_variance": "resample",
        "rollout.max_response_tokens": 16384 + 4096,
    },
    "gsm8k_qwen2.5_1.5b": {"train.samples_per_prompt": 8, "train.num_steps": 3 * (7473 // 128)},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_figures_by_hand(name: str) -> None:
    config = experiment(name)
    assert {key: value(config, key) for key in BY_HAND[name]} == BY_HAND[name]


IMPORTED: list[tuple[str, str, RunSize, set[str]]] = [
    (
        "open_r1_math_lora",
        "open_r1_demo.yaml",
        RunSize(num_processes=8, num_rows=93733),
        {"data.system_prompt", "checkpoint", "logging", "rewards", "seed", "learner.lora"},
    ),
    (
        "axolotl_r1",
        "axolotl_r1.yaml",
        RunSize(num_rows=7473),
        {"data", "rewards", "checkpoint", "logging", "eval", "seed"},
    ),
    (
        "easyr1_math",
        "easyr1_config.yaml",
        RunSize(num_rows=12000),
        {"data.prompt_template", "seed", "logging", "scoring"},  # tags that are special tokens stay in sight
    ),
    (
        "openrlhf_math",
        "openrlhf_math.sh",
        RunSize(num_rows=17000),
        {"rewards", "seed", "logging", "algorithm.corrections", "reference"},
    ),
]
"""Experiment, the recipe that it is from, and what it says otherwise on purpose."""


@pytest.mark.parametrize(("name", "recipe", "size", "otherwise"), IMPORTED, ids=[row[0] for row in IMPORTED])
def test_an_experiment_is_what_its_recipe_imports_to(
    name: str, recipe: str, size: RunSize, otherwise: set[str]
) -> None:
    source = read(RECIPES / recipe)
    choice = choose(source, None, None)
    written = translate(options_of(source, choice.dialect), choice.dialect, choice.version, size)
    config = experiment(name)
    compared = [key for key in flat(written.config) if not any(f"{key}.".startswith(f"{skip}.") for skip in otherwise)]
    assert len(compared) > 8
    assert {key: value(config, key) for key in compared} == {key: flat(written.config)[key] for key in compared}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in tree.items():
        is_node = isinstance(item, dict) and prefix + key not in ("data.train", "data.eval")
        found |= flat(item, f"{prefix}{key}.") if is_node else {f"{prefix}{key}": item}
    return found


def test_the_corrections_of_openrlhf_math_are_icepop() -> None:
    (node,) = corrections_of(experiment("openrlhf_math"))
    assert node == {"name": "mask", "low": 0.5}  # by token, at most 5


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_trajectory_fits_into_a_microbatch(name: str) -> None:
    config = experiment(name)
    longest = (config.data.max_prompt_tokens or 0) + config.rollout.max_response_tokens
    assert config.learner.microbatch_tokens >= longest
    if config.algorithm.kl.coef > 0:
        assert config.reference.microbatch_tokens >= longest
    assert not needs_critic(config)


def test_dapo_charges_for_the_last_tokens_only() -> None:
    config = experiment("dapo_math")
    assert [reward["name"] for reward in config.rewards] == ["math_answer", "soft_overlong_punishment"]
    assert config.rewards[0]["weight"] == 2.0  # 2 or 0, as 1 or -1 there
    # Its options' defaults are the paper's: the longest response, and a buffer of 4,096 before it.
    assert set(config.rewards[1]) == {"name"}
