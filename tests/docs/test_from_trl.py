"""The tables of docs/from-trl.md against the importer's, TRL's own classes and the schema: names, defaults, gaps."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from rlsys.commands.importers import our_defaults
from rlsys.commands.importers.dialects.trl import DIALECT
from rlsys.commands.importers.options import TableRow, default_at
from rlsys.commands.importers.our_defaults import MISSING, defaults, look_up
from rlsys.commands.importers.recipe import NoDefault, RunSize
from rlsys.commands.importers.translate import translate
from rlsys.config.compose import load_config
from rlsys.config.overrides import known_keys
from tests.docs.pages import Page

PAGE = Page("docs/from-trl.md")
HEADER = ["TRL", "default", "rlsys", "default", "what differs"]
KNOWN = set(known_keys())
SPAN = re.compile(r"`([^`]+)`")


# The rows of the tables that set options of both sides, each as its cells' text.
ROWS = [row for header, *rows in PAGE.tables if header == HEADER for row in rows]


def option_of(name: str) -> TableRow:
    return DIALECT.options[DIALECT.aliases.get(name, name)]


def values(cell: str) -> list[Any]:
    return [_loaded(span) for span in SPAN.findall(cell)]


def _loaded(text: str) -> Any:
    # YAML 1.1 reads `no` as a boolean and `1e-6` as text.
    if re.fullmatch(r"-?\d+(\.\d+)?e-?\d+", text):
        return float(text)
    return text if text == "no" else yaml.safe_load(text)


def keys(row: list[str]) -> list[str]:
    """The options of rlsys that a row names by their keys."""
    return [span for span in SPAN.findall(row[2]) if span in KNOWN or span.startswith("algorithm.")]


def test_the_tables_are_read() -> None:
    assert len(ROWS) > 50


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_row_names_what_the_importer_writes(row: list[str]) -> None:
    for name in SPAN.findall(row[0]):
        option = option_of(name)
        written = {*option.writes, *option.keys, *option.also}
        text = row[2] + row[4]
        named = [key for key in written if f"`{key}" in text or f"`{key.rpartition('.')[2]}`" in text]
        assert named or not written, f"`{name}` sets {', '.join(sorted(written))}, and its row names none of them"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_the_defaults_of_a_row_are_those_of_both_sides(row: list[str]) -> None:
    theirs = [default_at(option_of(name), DIALECT.default_version) for name in SPAN.findall(row[0])]
    assert values(row[1]) == [value for value in theirs if not isinstance(value, NoDefault)]
    ours = [look_up(key, defaults()) for key in keys(row)]
    if keys(row) and MISSING not in ours:
        assert values(row[3]) == ours


def test_every_option_that_the_importer_knows_has_a_place() -> None:
    text = PAGE.text
    in_tables = {name for row in ROWS for name in SPAN.findall(row[0])}
    for name, option in DIALECT.options.items():
        if option.ignored:
            continue
        if option.writes or option.keys:
            assert name in in_tables, f"docs/from-trl.md has no row for `{name}`"
        else:
            assert f"`{name}`" in text, f"docs/from-trl.md does not say what becomes of `{name}`"


def test_every_option_that_is_named_is_one_of_trl() -> None:
    trl = pytest.importorskip("trl")
    fields = {field.name for kind in (trl.GRPOConfig, trl.ModelConfig) for field in dataclasses.fields(kind)}
    for row in ROWS:
        for name in SPAN.findall(row[0]):
            assert name in fields or name in DIALECT.options, f"TRL has no option `{name}`"


def test_metrics_are_explained_on_their_page() -> None:
    explained = Page("docs/metrics.md").text
    table = PAGE.prose.partition("## Metrics\n")[2].partition("\n## ")[0]
    for line in table.splitlines():
        if line.startswith("| `"):
            for key in SPAN.findall(line.split(" | ")[1]):
                assert f"`{key}`" in explained, f"docs/metrics.md does not explain {key}"


# Options in which the two commands at the top of the page differ on purpose: they do not change what is learned.
DIFFER = {"seed", "run_dir", "checkpoint.every", "logging.trackers", "rollout.gpu_memory_utilization", "rewards"}


def test_the_two_commands_at_the_top_describe_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = next(block for block in PAGE.blocks if "GRPOConfig(" in block.text)
    call = next(
        node
        for node in ast.walk(ast.parse(script.text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "GRPOConfig"
    )
    given = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    given |= {"model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct", "dataset_name": "train.jsonl"}
    theirs = translate(given, DIALECT, DIALECT.default_version, RunSize()).written
    words = next(words for block in PAGE.blocks if block.language == "bash" for words in block.commands())
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    ours = OmegaConf.to_container(OmegaConf.structured(load_config([w for w in words[2:] if "=" in w])))
    assert isinstance(ours, dict)
    for key, value in our_defaults.differences(theirs).items():
        if key not in DIFFER and key != "data.train":
            assert look_up(key, ours) == value, (
                f"docs/from-trl.md: {key} is {look_up(key, ours)}, TRL's run has {value}"
            )
