"""Nothing is dropped silently: every option of a recipe ends in exactly one list."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rlsys.commands.importers import our_defaults
from rlsys.commands.importers.choose import DIALECTS, choose, options_of
from rlsys.commands.importers.options import Dialect, default_at
from rlsys.commands.importers.recipe import NoDefault, RunSize
from rlsys.commands.importers.recipe_file import RecipeFile, read
from rlsys.commands.importers.translate import Translation, spellings, translate
from rlsys.config.dotted import nested
from rlsys.config.overrides import known_keys
from rlsys.config.schema import Config
from rlsys.errors import ConfigError

RECIPES = sorted((Path(__file__).parent / "recipes").iterdir())
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
"""Values of options whose default is none or would not do alone."""


def example(dialect: Dialect, name: str) -> Any:
    known = spellings(dialect)[name]
    if known in EXAMPLES:
        return EXAMPLES[known]
    value = default_at(dialect.options[known], None)
    return "some value" if isinstance(value, NoDefault) else value


def accounted(result: Translation) -> list[str]:
    lists = (result.translated, result.unsupported, result.ignored, result.unknown)
    return [row.option for rows in lists for row in rows]


@pytest.mark.parametrize("name", DIALECTS)
@given(data=st.data())
@settings(max_examples=15)
def test_whatever_a_file_sets_is_accounted_for_once(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    names = spellings(dialect)
    chosen = data.draw(st.lists(st.sampled_from(sorted(names)), unique_by=lambda n: names[n], max_size=40))
    given_options = {option: example(dialect, option) for option in chosen}
    unknown = data.draw(st.lists(st.sampled_from(["learning_rat", "foo.bar", "x"]), unique=True))
    given_options |= dict.fromkeys(unknown, 1)
    size = RunSize(num_processes=8, num_rows=data.draw(st.sampled_from([None, 1000])))
    result = translate(given_options, dialect, data.draw(st.sampled_from(dialect.versions)), size)
    assert Counter(accounted(result)) == Counter(list(given_options))
    assert {left.option for left in result.unknown} == set(unknown)
    listed = {names.get(row.option, row.option) for row in result.defaults}
    assert not listed & {names[option] for option, value in given_options.items() if option in names and value}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_option_alone_is_accounted_for(name: str) -> None:
    dialect = DIALECTS[name]
    for option in spellings(dialect):
        result = translate(
            {option: example(dialect, option)},
            dialect,
            dialect.default_version,
            RunSize(num_processes=8),
        )
        assert accounted(result) == [option]


def test_axolotl_s_server_and_its_client_are_options_of_their_own() -> None:
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
    assert Counter(accounted(result)) == Counter(list(options))
    ends = ("host", "port", "timeout", "dtype", "model_len")
    assert {left.option for left in result.ignored} >= {name for name in options if name.endswith(ends)}
    assert result.written["rollout.tensor_parallel_size"] == 2
    assert result.written["rollout.gpu_memory_utilization"] == 0.85


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_are_accounted_for(path: Path) -> None:
    source = read(path)
    choice = choose(source, None, None)
    options = options_of(source, choice.dialect)
    result = translate(options, choice.dialect, choice.version, RunSize(num_rows=10000))
    assert sorted(accounted(result)) == sorted(options)
    assert len(options) > 15


@pytest.mark.parametrize("name", DIALECTS)
def test_a_table_names_keys_that_exist(name: str) -> None:
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
def test_a_default_is_listed_exactly_where_it_changes_a_run(name: str) -> None:
    """With nothing set, what is written beside our defaults is what the list says."""
    dialect = DIALECTS[name]
    size = RunSize(num_processes=8, num_rows=1000)
    result = translate({}, dialect, dialect.default_version, size)
    said = {key for row in result.defaults for key in row.written}
    changed = set(our_defaults.differences(result.written))
    by_others = {"data.eval", "data.overlong", "data.chat_template"}  # what the data asks for, not a default
    for key in {key for key in changed - by_others if not key.startswith("critic.")}:
        assert any(entry == key or entry.startswith(f"{key}.") for entry in said), key
    for row in result.defaults:
        for key, value in row.written.items():
            assert value == our_defaults.look_up(key, nested(result.written))
            assert value != row.ours[key]


def test_our_defaults_are_what_a_bare_run_has() -> None:
    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    assert isinstance(schema, dict)
    found = our_defaults.defaults()
    assert found["learner"] == schema["learner"]
    assert found["algorithm"]["kl"]["coef"] == 0.04  # the group `algorithm: grpo`
    assert our_defaults.look_up("algorithm.policy_loss.clip_low", found) == 0.2  # the function's own
    assert our_defaults.look_up("algorithm.policy_loss.no_such", found) is our_defaults.MISSING


def test_differences_leave_out_what_a_run_has_anyway() -> None:
    written = {
        "algorithm.policy_loss": {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28},
        "algorithm.kl.coef": 0.04,
        "learner.betas": (0.9, 0.999),
        "train.num_steps": 7,
        "seed": 0,
    }
    assert our_defaults.differences(written) == {
        "train.num_steps": 7,
        "algorithm.policy_loss": {"name": "ppo_clip", "clip_high": 0.28},
    }


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
def test_the_dialect_is_guessed_from_what_only_it_has(tree: dict[str, Any], dialect: str) -> None:
    choice = choose(RecipeFile(tree, [Path("recipe.yaml")]), None, None)
    assert choice.dialect.name == dialect
    assert choice.because.startswith("guessed: it sets ")


def test_a_dialect_that_nothing_tells_is_asked_for() -> None:
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
def test_a_version_is_read_as_the_newest_known_up_to_it(asked: str | None, read_at: str) -> None:
    choice = choose(RecipeFile({}, [Path("recipe.yaml")]), "trl", asked)
    assert choice.version == read_at
    assert f"defaults of trl {read_at}" in choice.because


@pytest.mark.parametrize(("asked", "said"), [("0.9", "older than any known"), ("latest", "not a version")])
def test_a_version_that_cannot_be_read_is_refused(asked: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose(RecipeFile({}, [Path("recipe.yaml")]), "trl", asked)
