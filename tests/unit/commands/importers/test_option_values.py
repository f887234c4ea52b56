"""Words, switches and numbers of a recipe's text by the kind of their option."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.commands.importers.dialects import axolotl, easyr1, openrlhf, trl
from rlsys.commands.importers.option_values import typed_value
from rlsys.commands.importers.options import Dialect, TableRow
from rlsys.commands.importers.shell_variables import Unread
from rlsys.errors import ConfigError
from tests.unit.commands.importers.imports import run


@pytest.mark.parametrize(
    ("default", "value", "expected"),
    [
        ("no", "no", "no"),
        ("steps", "off", "off"),
        (False, "no", False),
        (False, "yes", True),
        (True, "off", False),
        (False, "True", True),
        (False, 1, True),
        (None, "no", False),
        (None, "On", True),
        (None, {"enable_thinking": "no", "depth": ["yes", "a"]}, {"enable_thinking": False, "depth": [True, "a"]}),
        (1.0, "1e-6", 1e-6),
        (1, "8", 8),
        (1, "auto", "auto"),
        ("x", "8", "8"),
        (None, "text", "text"),
    ],
)
def test_a_value_is_read_by_the_kind_of_its_option(default: Any, value: Any, expected: Any) -> None:
    found = typed_value("option", value, TableRow(default))
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("default", "value"), [(False, "maybe"), (False, 2), (False, [True]), (1.0, True)])
def test_a_value_of_another_kind_is_an_error(default: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match="the option is a"):
        typed_value("option", value, TableRow(default))


def test_words_beside_a_switch_stay_words() -> None:
    row = TableRow("auto", words=("auto", "full"))
    assert [typed_value("bf16", value, row) for value in ("auto", "yes", "no")] == ["auto", True, False]


def test_a_word_that_is_not_known_matters_where_its_option_does() -> None:
    value = Unread("${NAME##*/}", "line 3 changes a variable")
    assert typed_value("run_name", value, TableRow(None, ignored="a folder names it")) == value
    with pytest.raises(ConfigError, match=r"'seed' is '\$\{NAME##\*/\}': line 3 changes a variable"):
        typed_value("seed", [1, value], TableRow(0))


@pytest.mark.parametrize(
    ("dialect", "options", "expected"),
    [
        (trl.DIALECT, {"eval_strategy": "no", "dataset_name": "d"}, {"eval.every": 0, "data.eval": None}),
        (trl.DIALECT, {"save_strategy": "no"}, {"checkpoint.every": 0}),
        (trl.DIALECT, {"use_vllm": "no"}, {"algorithm.corrections": None}),
        (trl.DIALECT, {"scale_rewards": "none"}, {"algorithm.advantage": {"name": "grpo", "scale": "none"}}),
        (trl.DIALECT, {"scale_rewards": "off"}, {"algorithm.advantage": {"name": "grpo", "scale": "none"}}),
        (trl.DIALECT, {"report_to": "none"}, {"logging.trackers": []}),
        (trl.DIALECT, {"learning_rate": "2e-6"}, {"learner.lr": 2e-6}),
        # What TRL documents for a lower bound alone.
        (
            trl.DIALECT,
            {"use_vllm": True, "vllm_importance_sampling_clip_max": None, "vllm_importance_sampling_clip_min": 0.5},
            {"algorithm.corrections": [{"name": "mask", "level": "sequence", "high": 1e30, "low": 0.5}]},
        ),
        (axolotl.DIALECT, {"rl": "grpo", "micro_batch_size": 8, "bf16": "no"}, {"learner.dtype": "float32"}),
        # axolotl leaves nulls out.
        (axolotl.DIALECT, {"rl": "grpo", "micro_batch_size": 8, "max_grad_norm": None}, {"learner.max_grad_norm": 1.0}),
        (easyr1.DIALECT, {"trainer.logger": ["console"], "data.shuffle": "off"}, {"data.shuffle": False}),
        (
            openrlhf.DIALECT,
            {"algo.advantage.is_correction_level": "off"},
            {"algorithm.corrections": None},
        ),
    ],
)
def test_words_that_yaml_takes_for_switches(
    dialect: Dialect, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    written = run(dialect, options).written
    assert {key: written[key] for key in expected} == expected


def test_a_null_that_replaces_a_default_is_reported() -> None:
    result = run(trl.DIALECT, {"max_grad_norm": None, "epsilon_high": None})
    assert [(left.option, left.value) for left in result.unsupported] == [("max_grad_norm", None)]
    assert "null is not read here" in result.unsupported[0].reason


@pytest.mark.parametrize("options", [{"eval_strategy": "sometimes"}, {"save_strategy": False}])
def test_a_strategy_that_trl_does_not_have_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="TRL has no, steps"):
        run(trl.DIALECT, options)
