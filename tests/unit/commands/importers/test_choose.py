"""Which project and which of its versions a recipe is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlsys.commands.importers.choose import DIALECTS, choose, options_of
from rlsys.commands.importers.recipe_file import RecipeFile
from rlsys.errors import ConfigError


@pytest.mark.parametrize(
    ("tree", "dialect"),
    [
        ({"num_generations": 8}, "trl"),
        ({"num_generations": 8, "system_prompt": "x"}, "open-r1"),
        ({"reward_funcs": ["accuracy"]}, "open-r1"),
        ({"reward_funcs": ["accuracy_reward"]}, "trl"),
        ({"packing": True, "num_generations": 8}, "trl"),  # the first is unknown then, not decisive
        ({"base_model": "x", "rl": "grpo", "trl": {"beta": 0.1}}, "axolotl"),
        ({"worker": {"actor": {"global_batch_size": 8}}}, "easyr1"),
        ({"rollout": {"n_samples_per_prompt": 8}}, "openrlhf"),
        ({"pretrain": "x", "init_kl_coef": 0.1}, "openrlhf"),
    ],
)
def test_the_dialect_is_guessed_from_options_that_only_it_has(tree: dict[str, Any], dialect: str) -> None:
    choice = choose(RecipeFile(tree, [Path("recipe.yaml")]), None, None)
    assert choice.dialect.name == dialect
    assert choice.because.startswith("guessed: it sets ")


def test_flags_of_transformers_parser_have_other_spellings() -> None:
    tree = {"num-generations": 4, "no_shuffle_dataset": True, "no-gradient-checkpointing": True, "no_such": True}
    options = options_of(RecipeFile(tree), DIALECTS["trl"])
    expected = {"num_generations": 4, "shuffle_dataset": False, "gradient_checkpointing": False, "no_such": True}
    assert options == expected


def test_an_unclear_recipe_needs_the_dialect() -> None:
    source = RecipeFile({"learning_rate": 1, "per_device_train_batch_size": 8}, [Path("recipe.yaml")])
    with pytest.raises(ConfigError, match=r"give --dialect trl\|open-r1"):
        choose(source, None, None)
    assert choose(source, "trl", None).dialect.name == "trl"
    with pytest.raises(ConfigError, match="did you mean 'axolotl'"):
        choose(source, "axolot", None)


@pytest.mark.parametrize(
    ("asked", "read_at"),
    [
        (None, "1.16"),
        ("1.8", "1.8"),
        ("1.8.2", "1.8"),
        ("1.9", "1.9"),
        ("0.19.1", "0.19"),
        ("1", "1.16"),
        ("2.0", "1.16"),
    ],
)
def test_a_version_stands_for_the_newest_known_up_to_it(asked: str | None, read_at: str) -> None:
    choice = choose(RecipeFile({}, [Path("recipe.yaml")]), "trl", asked)
    assert choice.version == read_at
    assert f"defaults of trl {read_at}" in choice.because


@pytest.mark.parametrize(("asked", "message"), [("0.9", "older than any known"), ("latest", "not a version")])
def test_a_version_that_cannot_be_used_is_an_error(asked: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(RecipeFile({}, [Path("recipe.yaml")]), "trl", asked)


@pytest.mark.parametrize(
    ("tree", "what"),
    [
        ({"model_name_or_path": "m", "per_device_train_batch_size": 8, "packing": True}, "supervised fine-tuning"),
        ({"per_device_train_batch_size": 8, "max_length": 8192, "system_prompt": "x"}, "training on given answers"),
        ({"beta": 0.1, "per_device_train_batch_size": 8, "loss_type": "sigmoid"}, "preferences"),
        ({"desirable_weight": 1.0, "beta": 0.1}, "preferences"),
        ({"center_rewards_coefficient": 0.01}, "a reward model"),
        ({"base_model": "m", "micro_batch_size": 8, "datasets": [{"path": "d"}]}, "axolotl does supervised"),
        ({"base_model": "m", "reward_model": True}, "a reward model"),
        ({"model": {"partial_pretrain": "m"}, "data": {"train_files": "a.parquet"}}, "supervised fine-tuning"),
    ],
)
def test_a_recipe_of_another_training_is_refused_as_what_it_is(tree: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=rf"recipe\.yaml.*{what}"):
        choose(RecipeFile(tree, [Path("recipe.yaml")]), None, None)


@pytest.mark.parametrize(
    ("options", "read_at"),
    [
        ({"num_generations": 8}, "1.16"),
        ({"max_prompt_length": 512}, "0.27"),  # gone since 0.28
        ({"max_prompt_length": 512, "top_entropy_quantile": 0.2}, "0.27"),
    ],
)
def test_the_version_is_the_nearest_that_has_every_option(options: dict[str, Any], read_at: str) -> None:
    choice = choose(RecipeFile(options, [Path("recipe.yaml")]), "trl", None)
    assert choice.version == read_at
    assert ("the nearest that has max_prompt_length" in choice.because) == (read_at != "1.16")


@pytest.mark.parametrize(
    ("asked", "read_at"),
    [("0.9", "0.9.8"), ("0.9.5", "0.9.3"), ("0.10.4", "0.10"), ("0.11", "0.11.2"), (None, "0.11.2")],
)
def test_a_version_of_two_parts_stands_for_its_last_release(asked: str | None, read_at: str) -> None:
    assert choose(RecipeFile({}, [Path("recipe.sh")]), "openrlhf", asked).version == read_at


@pytest.mark.parametrize(("asked", "message"), [("0.8", "older than any known"), ("latest", "not a version")])
def test_a_version_of_openrlhf_that_cannot_be_used_is_an_error(asked: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(RecipeFile({}, [Path("recipe.sh")]), "openrlhf", asked)
