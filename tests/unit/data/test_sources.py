"""Sources of rows: what names them, mixtures, renames, and which line is to blame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.schema import DataConfig
from rlsys.data.sources import Source, absolute_sources, load, sources_of
from rlsys.errors import ConfigError, DataError


def titles(value: Any, key: str = "data.train") -> list[str]:
    return [source.title for source in sources_of(value, key, DataConfig())]


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig()


def test_a_name_is_one_source_and_a_list_several() -> None:
    assert titles("addition") == ["addition"]
    assert titles(["some/where/train.jsonl", {"name": "org/maths"}, "my.data:rows"]) == ["train", "maths", "rows"]
    assert titles(["a/test.jsonl", "b/test.jsonl", {"name": "c", "label": "mine"}]) == ["test", "test_2", "mine"]
    assert titles(None, "data.eval") == []


def test_splits_and_options_are_the_source_s_or_the_run_s() -> None:
    config = DataConfig(train_split="train[:10]", options={"held_out": 3})
    (alone,) = sources_of("addition", "data.train", config)
    assert (alone.split, alone.options) == ("train[:10]", {"held_out": 3})
    config.options = {}
    first, second = sources_of(["addition", {"name": "x", "split": "dev", "subset": None}], "data.train", config)
    assert (first.split, second.split, second.subset) == ("train[:10]", "dev", None)


@pytest.mark.parametrize("value", [["addition"], {"name": "addition", "limit": 5}])
def test_options_of_one_among_several_are_its_own(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.options=\{'held_out': 3\} goes with a source that is a single name"):
        sources_of(value, "data.train", DataConfig(options={"held_out": 3}))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "empty list"),
        ([{"path": "x"}], "neither a source's name nor a mapping with a `name`"),
        (7, "neither a source's name"),
        ([{"name": "x", "wieght": 2}], "'x' has no key 'wieght': did you mean 'weight'?"),
        ([{"name": "x", "weight": 2}, {"name": "y"}], "x has a weight and others have none"),
        ([{"name": "x", "weight": 0}], "weight=0: it must be positive"),
        ([{"name": "x", "share": 1.5}], "share=1.5"),
        ([{"name": "x", "weight": "2"}], "data.train: 'x' has weight='2': it must be a number"),
        ([{"name": "x", "share": True}], "data.train: 'x' has share=True: it must be a number"),
        ([{"name": "x", "weight": float("nan")}], "'x' has weight=nan: it must be positive"),
        ([{"name": "x", "limit": -1}], "data.train: 'x' has limit=-1: it must be positive"),
        ([{"name": "x", "limit": 0}], "data.train: 'x' has limit=0: it must be positive"),
        ([{"name": "x", "limit": 2.5}], "data.train: 'x' has limit=2.5: it must be a whole number"),
        ([{"name": "x.jsonl", "split": "train[:9]"}], "'x.jsonl' has no split: that is for `datasets` names"),
        ([{"name": "my.data:rows", "subset": "a"}], "'my.data:rows' has no subset"),
    ],
)
def test_what_is_no_source_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sources_of(value, "data.train", DataConfig())
    assert said in str(caught.value)


def test_files_are_made_absolute_and_other_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "rows.jsonl", {"prompt": "a"})
    for folder in ("local", "addition"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    stay = ["addition", "org/maths", "my.data:rows", "missing.jsonl", str(tmp_path / "rows.jsonl"), 7, {"path": "x"}]
    assert absolute_sources(stay) == stay
    assert absolute_sources(None) is None
    assert absolute_sources("rows.jsonl") == str(tmp_path / "rows.jsonl")
    options = {"data_files": {"train": ["rows.jsonl", "hub.json"]}, "data_dir": "", "revision": "rows.jsonl"}
    (made,) = absolute_sources([{"name": "json", "options": options}])
    files = {"train": [str(tmp_path / "rows.jsonl"), "hub.json"]}
    assert made["options"] == {"data_files": files, "data_dir": "", "revision": "rows.jsonl"}
    assert absolute_sources([{"name": "./local", "limit": 3}, "own.py:rows"]) == [
        {"name": str(tmp_path / "local"), "limit": 3},
        f"{tmp_path}/own.py:rows",
    ]


def test_a_share_is_drawn_by_the_seed_and_keeps_the_order(tmp_path: Path, config: DataConfig) -> None:
    name = jsonl(tmp_path / "rows.jsonl", *({"prompt": str(number)} for number in range(20)))
    source = Source(name, share=0.35, options=config.options)
    first, again, other = (load(source, config, seed=seed) for seed in (1, 1, 2))
    assert first.rows == again.rows != other.rows
    assert len(first.rows) == 7
    numbers = [int(row["prompt"]) for row in first.rows]
    assert numbers == sorted(set(numbers)) == list(first.numbers)


def test_columns_are_renamed(tmp_path: Path, config: DataConfig) -> None:
    name = jsonl(tmp_path / "rows.jsonl", {"problem": "1+1", "gold": "2", "level": 1})
    source = Source(name, prompt_column="problem", columns={"answer": "gold"}, options=config.options)
    assert load(source, config, seed=0).rows == [{"level": 1, "answer": "2", "prompt": "1+1"}]
    config.columns = {"answer": "golt"}
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: no column 'golt'.*did you mean 'gold'\?"):
        load(Source(name, options=config.options), config, seed=0)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["{'prompt': 1}"], "line 1: not JSON: Expecting property name"),
        ([{"prompt": "a"}, "", '{"prompt": "b"'], "line 3: not JSON"),
        ([{"prompt": "a"}, [1]], "line 2: a row must be an object with named columns, this is a list"),
    ],
)
def test_a_malformed_row_names_file_and_line(tmp_path: Path, config: DataConfig, rows: list[Any], said: str) -> None:
    name = jsonl(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        load(Source(name, options=config.options), config, seed=0)
    assert f"{name}, {said}" in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "text", "said"),
    [
        ("csv", 'prompt,answer\n"two\nlines",b\nc,d,e\n', "line 4: 3 fields, but the first line names 2 columns"),
        ("json", '[{"prompt": "a"},\n {"prompt": ]', "line 2: not JSON: Expecting value at character 13"),
        ("json", '[{"prompt": "a"}, 7]', "row 2: a row must be an object with named columns, this is a number"),
    ],
)
def test_other_files_name_the_line_too(tmp_path: Path, config: DataConfig, suffix: str, text: str, said: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load(Source(str(path), options=config.options), config, seed=0)
    assert f"{path}, {said}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("prompt,answer\nAdd 1, 2,3\nc,d\n", {}, "line 2: 3 fields, but the first line names 2 columns"),
        ("prompt;answer\na;1;2\nc;d\n", {"sep": ";"}, "line 2: 3 fields, but the first line names 2 columns"),
        ("a,1,2\nc,d\n", {"column_names": ["prompt", "answer"]}, "Length of header or names does not match"),
    ],
)
def test_a_first_row_with_too_many_fields_shifts_no_column(
    tmp_path: Path, text: str, options: dict[str, Any], said: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load(Source(str(path), options=options), DataConfig(), seed=0)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "text", "line", "advice"),
    [
        ("jsonl", '{"prompt": "a"}\n\n{"prompt": "é"}\n', 3, "save the file as UTF-8"),
        ("json", '[{"prompt": "a"},\n {"prompt": "é"}]', 2, "save the file as UTF-8"),
        ("csv", "prompt,answer\na,b\né,c\n", 3, "or name its encoding in options.encoding"),
        ("txt", "a\né\n", 2, "save the file as UTF-8"),
    ],
)
def test_what_is_not_utf8_names_file_and_line(tmp_path: Path, suffix: str, text: str, line: int, advice: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        load(Source(str(path)), DataConfig(), seed=0)
    assert f"{path}, line {line}: not UTF-8: byte" in str(caught.value)
    assert advice in str(caught.value)


def test_the_line_counts_blank_ones_and_rows_left_out(tmp_path: Path, config: DataConfig) -> None:
    name = jsonl(tmp_path / "rows.jsonl", {"prompt": "a"}, "", {"prompt": "b"}, {"prompt": "c"})
    loaded = load(Source(name, options=config.options), config, seed=0)
    assert [loaded.where(index) for index in range(3)] == [f"{name}, line {line}" for line in (1, 3, 4)]
