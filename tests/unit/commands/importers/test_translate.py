"""Nothing is dropped silently: every option of a recipe ends in exactly one list."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.commands.importers import our_defaults
from rlsys.commands.importers.choose import DIALECTS, choose, options_of
from rlsys.commands.importers.options import Dialect, default_at
from rlsys.commands.importers.recipe import NoDefault, RunSize
from rlsys.commands.importers.recipe_file import RecipeFile, read
from rlsys.commands.importers.translate import Translation, spellings, translate
from rlsys.config.dotted import nested
from rlsys.config.overrides import known_keys

RECIPES = sorted((Path(__file__).parent / "recipes").iterdir())
# Values of options that have no default, or whose default is not valid alone.
EXAMPLES: dict[str, Any] = {
    "num_processes": 8,
    "world_size": 8,
    "vllm.enforce_eager": True,
    "max_prompt_length": 512,
    "datasets": [{"path": "org/data"}],
    "test_datasets": [{"path": "org/data", "split": "test"}],
    "dataset_mixture": {"datasets": [{"id": "org/data", "weight": 0.5}]},
    "reward_weights": None,
    "deepspeed": "zero3.json",
    "rl": "grpo",
    "adapter": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_modules": ["q_proj"],
    "chat_template_kwargs": {"enable_thinking": False},
    "wandb_project": "project",
    "data.train_files": "org/data@train",
    "worker.reward.reward_function": "./f.py:score",
    "worker.rollout.val_override_config": {"n": 4},
    "data.prompt_dataset": "org/data",
    "reward.model_name_or_path": "org/rm",
    "reward.remote_url": "http://localhost:1/reward",
    "actor.eps_clip_low_high": [0.1, 0.3],
    "data.max_samples": 100000,
    "algo.advantage.is_correction_type": "icepop",
    "train.max_tokens_per_gpu": 16384,
    "steps_per_generation": None,  # excludes generation_batch_size
    "generation_batch_size": None,
}


def example(dialect: Dialect, name: str) -> Any:
    known = spellings(dialect)[name]
    if known in EXAMPLES:
        return EXAMPLES[known]
    value = default_at(dialect.options[known], None)
    return "some value" if isinstance(value, NoDefault) else value


def reported(result: Translation) -> list[str]:
    lists = (result.translated, result.unsupported, result.ignored, result.unknown)
    return [row.option for rows in lists for row in rows]


@pytest.mark.parametrize("name", DIALECTS)
@given(data=st.data())
@settings(max_examples=15)
def test_every_option_given_is_reported_once(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    names = spellings(dialect)
    chosen = data.draw(st.lists(st.sampled_from(sorted(names)), unique_by=lambda n: names[n], max_size=40))
    given_options = {option: example(dialect, option) for option in chosen}
    unknown = data.draw(st.lists(st.sampled_from(["learning_rat", "foo.bar", "x"]), unique=True))
    given_options |= dict.fromkeys(unknown, 1)
    size = RunSize(num_processes=8, num_rows=data.draw(st.sampled_from([None, 1000])))
    result = translate(given_options, dialect, data.draw(st.sampled_from(dialect.versions)), size)
    assert Counter(reported(result)) == Counter(list(given_options))
    assert {left.option for left in result.unknown} == set(unknown)
    listed = {names.get(row.option, row.option) for row in result.defaults}
    assert not listed & {names[option] for option, value in given_options.items() if option in names and value}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_option_alone_is_reported(name: str) -> None:
    dialect = DIALECTS[name]
    for option in spellings(dialect):
        result = translate(
            {option: example(dialect, option)},
            dialect,
            dialect.default_version,
            RunSize(num_processes=8),
        )
        assert reported(result) == [option]


def test_the_server_and_the_client_of_axolotl_have_options_of_their_own() -> None:
    """The example of axolotl's GRPO documentation: where the server listens, and where the trainer asks."""
    tree = {
        "base_model": "Qwen/Qwen2.5-1.5B-Instruct",
        "vllm": {
            "host": "0.0.0.0",
            "port": 8000,
            "tensor_parallel_size": 2,
            "gpu_memory_utilization": 0.85,
            "dtype": "auto",
            "max_model_len": 2048,
        },
        "rl": "grpo",
        "trl": {
            "use_vllm": True,
            "vllm_server_host": "0.0.0.0",
            "vllm_server_port": 8000,
            "vllm_server_timeout": 300,
            "vllm_max_model_len": 2048,
        },
        "micro_batch_size": 4,
    }
    dialect = DIALECTS["axolotl"]
    options = options_of(RecipeFile(tree), dialect)
    result = translate(options, dialect, dialect.default_version, RunSize(num_processes=2))
    assert Counter(reported(result)) == Counter(list(options))
    ends = ("host", "port", "timeout", "dtype", "model_len")
    assert {left.option for left in result.ignored} >= {name for name in options if name.endswith(ends)}
    assert result.written["rollout.tensor_parallel_size"] == 2
    assert result.written["rollout.gpu_memory_utilization"] == 0.85


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_option_of_a_recipe_is_reported(path: Path) -> None:
    source = read(path)
    choice = choose(source, None, None)
    options = options_of(source, choice.dialect)
    result = translate(options, choice.dialect, choice.version, RunSize(num_rows=10000))
    assert sorted(reported(result)) == sorted(options)
    assert len(options) > 15


@pytest.mark.parametrize("name", DIALECTS)
def test_a_table_names_existing_keys(name: str) -> None:
    known = set(known_keys())
    for option, entry in DIALECTS[name].options.items():
        for key in (*entry.keys, *entry.also):
            prefix, _, last = key.rpartition(".")
            assert key in known or (prefix in our_defaults.FUNCTIONS and last), f"{option}: {key}"


@pytest.mark.parametrize("name", DIALECTS)
def test_every_alias_leads_to_an_option(name: str) -> None:
    dialect = DIALECTS[name]
    assert set(dialect.aliases.values()) <= set(dialect.options)
    assert set(dialect.unique_options) <= {*spellings(dialect), "trl"}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_default_is_listed_exactly_when_it_changes_a_run(name: str) -> None:
    """With nothing set, the list holds every written key that differs from the defaults of rlsys, and no other."""
    dialect = DIALECTS[name]
    size = RunSize(num_processes=8, num_rows=1000)
    result = translate({}, dialect, dialect.default_version, size)
    said = {key for row in result.defaults for key in row.written}
    changed = set(our_defaults.differences(result.written))
    by_others = {
        "data.eval",
        "data.overlong",
        "data.chat_template",
        "data.columns",
    }  # what the data asks for, not a default
    for key in {key for key in changed - by_others if not key.startswith("critic.")}:
        assert any(entry == key or entry.startswith(f"{key}.") for entry in said), key
    for row in result.defaults:
        for key, value in row.written.items():
            assert value == our_defaults.look_up(key, nested(result.written))
            assert value != row.ours[key]
