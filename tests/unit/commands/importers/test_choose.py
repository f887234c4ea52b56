"""Which project and which of its versions a recipe is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlsys.commands.importers.choose import choose
from rlsys.commands.importers.recipe_file import RecipeFile
from rlsys.errors import ConfigError


@pytest.mark.parametrize(
    ("tree", "dialect"),
    [
        ({"per_device_train_batch_size": 8, "num_generations": 8}, "trl"),
        ({"per_device_train_batch_size": 8, "system_prompt": "x"}, "open-r1"),
        ({"per_device_train_batch_size": 8, "reward_funcs": ["accuracy"]}, "open-r1"),
        ({"per_device_train_batch_size": 8, "reward_funcs": ["accuracy_reward"]}, "trl"),
        ({"base_model": "x", "trl": {"beta": 0.1}}, "axolotl"),
        ({"worker": {"actor": {"global_batch_size": 8}}}, "easyr1"),
        ({"rollout": {"n_samples_per_prompt": 8}}, "openrlhf"),
        ({"pretrain": "x", "init_kl_coef": 0.1}, "openrlhf"),
    ],
)
def test_the_dialect_is_guessed_from_options_that_only_it_has(tree: dict[str, Any], dialect: str) -> None:
    choice = choose(RecipeFile(tree, [Path("recipe.yaml")]), None, None)
    assert choice.dialect.name == dialect
    assert choice.because.startswith("guessed: it sets ")


def test_an_unclear_recipe_needs_the_dialect() -> None:
    source = RecipeFile({"learning_rate": 1}, [Path("recipe.yaml")])
    with pytest.raises(ConfigError, match=r"give --dialect trl\|open-r1"):
        choose(source, None, None)
    assert choose(source, "trl", None).dialect.name == "trl"
    with pytest.raises(ConfigError, match="did you mean 'axolotl'"):
        choose(source, "axolot", None)


@pytest.mark.parametrize(
    ("asked", "read_at"),
    [(None, "1.16"), ("1.8", "1.8"), ("1.8.2", "1.8"), ("1.9", "1.8"), ("0.19.1", "0.19"), ("2.0", "1.16")],
)
def test_a_version_stands_for_the_newest_known_up_to_it(asked: str | None, read_at: str) -> None:
    choice = choose(RecipeFile({}, [Path("recipe.yaml")]), "trl", asked)
    assert choice.version == read_at
    assert f"defaults of trl {read_at}" in choice.because


@pytest.mark.parametrize(("asked", "message"), [("0.9", "older than any known"), ("latest", "not a version")])
def test_a_version_that_cannot_be_used_is_an_error(asked: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(RecipeFile({}, [Path("recipe.yaml")]), "trl", asked)
