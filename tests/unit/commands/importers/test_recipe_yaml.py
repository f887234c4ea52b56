"""YAML of recipes."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.commands.importers.recipe_yaml import load_yaml, override_value
from rlsys.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),  # a text to PyYAML alone
        ("1.5E3", 1500.0),
        ("0123", 83),  # YAML 1.1: octal
        ("1:30", 90),  # YAML 1.1: to the base of 60
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("On", "On"),
        ("null", None),
        ("None", "None"),
    ],
)
def test_a_scalar(text: str, value: Any) -> None:
    found = load_yaml(f"a: {text}", "a.yaml")["a"]
    assert found == value
    assert type(found) is type(value)
    assert override_value(text) == value


@pytest.mark.parametrize(
    "text",
    ["a: 1\na: 2\n", "a: {b: 1, b: 2}\n", "a: !include other.yaml\n", "a: !!python/tuple [1]\n", "a: *b\n", "a: [1\n",
     "a: 1\n---\nb: 2\n", "\ta: 1\n", "[" * 5000],
)  # fmt: skip
def test_a_text_that_is_no_recipe_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml is ne"):
        load_yaml(text, "a.yaml")


def test_an_override_that_is_no_yaml_is_a_text() -> None:
    assert override_value("[a") == "[a"
    assert override_value("['console','wandb']") == ["console", "wandb"]
