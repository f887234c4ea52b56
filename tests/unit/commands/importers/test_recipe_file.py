"""Recipes as YAML, JSON and scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlsys.commands.importers.recipe_file import read
from rlsys.errors import ConfigError
from tests.unit.commands.importers.imports import RECIPES


def test_overrides_replace_values_of_the_base_file() -> None:
    source = read(RECIPES / "easyr1_qwen_math.sh")
    assert [path.name for path in source.files] == ["easyr1_qwen_math.sh", "easyr1_config.yaml"]
    assert source.program == "verl.trainer.main"
    worker = source.tree["worker"]
    assert worker["actor"]["model"]["model_path"] == "Qwen/Qwen3-4B"  # the override
    assert worker["actor"]["model"]["enable_gradient_checkpointing"] is True  # beneath it
    assert worker["actor"]["optim"] == {"lr": 1e-5, "weight_decay": 0.01, "strategy": "adamw", "lr_warmup_ratio": 0.0}
    assert worker["rollout"]["val_override_config"] == {"n": 16, "temperature": 1.0, "top_p": 0.7}


def test_a_missing_base_file_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("python3 -m verl.trainer.main config=nowhere/config.yaml data.seed=1\n")
    with pytest.raises(ConfigError, match=r"builds on 'nowhere/config\.yaml'"):
        read(script)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "- 1\n- 2\n", "holds list, not a mapping"),
        ("a.yaml", "a: [1\n", "is neither YAML nor JSON"),
        ("a.json", "{", "is neither YAML nor JSON"),
        ("a.sh", "echo hello\n", "no flags"),
        ("a.py", "args = GRPOConfig(beta=0.1)\n", "is a Python script"),
        ("a.yaml", "", "is empty"),
        ("a.json", " \n", "is empty"),
        ("a.sh", "\n", "is empty"),
        ("a.yaml", "null\n", "holds NoneType, not a mapping"),
        ("a.json", "[1]", "holds list, not a mapping"),
        ("a.json", '{"a": 1, "a": 2}', "sets a more than once"),
        ("a.json", "[" * 100000, "is neither YAML nor JSON"),
        ("a.yaml", b"a: caf\xe9\n", r"recipe: .*a\.yaml is not UTF-8 \(byte 7\)"),
        ("a.sh", "trl grpo --name caf\xe9".encode("utf-16"), r"recipe: .*a\.sh is not UTF-8 \(byte 1\)"),
        ("a.sh", b"\x00\x01", "holds a zero byte"),
    ],
)
def test_files_that_cannot_be_read_are_errors(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        read(path)


def test_a_byte_order_mark_is_no_part_of_the_first_option(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfbeta: 0.1\n")
    assert read(path).tree == {"beta": 0.1}
    assert read(path.rename(tmp_path / "a.yml")).tree == {"beta": 0.1}


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "none.yaml")


def test_json_and_yaml_are_the_same_recipe(tmp_path: Path) -> None:
    tree = {"learning_rate": 2e-05, "nested": {"a": [1, 2]}, "none": None}
    (tmp_path / "a.json").write_text(json.dumps(tree))
    (tmp_path / "a.yaml").write_text("learning_rate: 2e-5\nnested:\n  a: [1, 2]\nnone:\n")
    assert read(tmp_path / "a.json").tree == read(tmp_path / "a.yaml").tree == tree
