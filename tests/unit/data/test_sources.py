"""Sources of rows: what names them, mixtures, renames, and which line is to blame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.schema import DataConfig
from rlsys.data.loading import load
from rlsys.data.sources import Source, absolute_options, absolute_sources, sources_of
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
    assert titles(["org/Qwen2.5-maths", "a/v1.5.jsonl.gz", "b-1.5.PARQUET"]) == ["Qwen2.5-maths", "v1.5", "b-1.5"]
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
        (
            [{"name": "x", "weight": 1e-9}, {"name": "y", "weight": 1}],
            "'x' has weight=1e-09, less than one in 1000 of all weights, and a mixture is exact over 1000 prompts: "
            "give it at least 0.001001, or",
        ),
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
        ([{"name": "x", "split": 5}], "data.train: 'x' has split=5: it must be text"),
        ([{"name": "x", "prompt_column": ["a"]}], "'x' has prompt_column=['a']: it must be text"),
        ([{"name": "x", "label": {}}], "'x' has label={}: it must be text"),
        ([{"name": "x", "columns": "gold"}], "'x' has columns='gold': it must be a mapping"),
        ([{"name": "x", "columns": {"answer": 5}}], "'x' has columns={'answer': 5}: it must be a mapping of texts"),
        ([{"name": "x", "options": {5: 1}}], "'x' has options={5: 1}: it must be a mapping"),
        ("", "data.train: '' is neither a source's name"),
        ([{"name": " "}], "is neither a source's name"),
        ([{"name": "x", "options": [1]}], "'x' has options=[1]: it must be a mapping"),
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
    files = {"train": [str(tmp_path / "rows.jsonl"), str(tmp_path / "hub.json")]}
    assert made["options"] == {"data_files": files, "data_dir": "", "revision": "rows.jsonl"}
    (hub,) = absolute_sources([{"name": "org/maths", "options": options}])
    assert hub["options"] == options  # the repository's own files
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_options(["json", None], {"data_files": ["~/rows.jsonl", "https://a/b.json"]}) == {
        "data_files": [str(tmp_path / "rows.jsonl"), "https://a/b.json"]
    }
    assert absolute_sources("~/part-*.jsonl.gz") == str(tmp_path / "part-*.jsonl.gz")
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


def test_a_name_with_dots_is_a_key_inside_of_a_column(tmp_path: Path) -> None:
    """A file as verl's preprocessing writes it."""
    import datasets

    row = {
        "data_source": "openai/gsm8k",
        "prompt": [{"content": "1+1", "role": "user"}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": 0, "split": "train"},
    }
    datasets.Dataset.from_list([row]).to_parquet(str(tmp_path / "train.parquet"))
    source = Source(str(tmp_path / "train.parquet"))
    columns = {"answer": "reward_model.ground_truth", "number": "extra_info.index"}
    assert load(source, DataConfig(columns=columns), seed=0).rows == [row | {"answer": "2", "number": 0}]
    asked = load(source, DataConfig(prompt_column="reward_model.style"), seed=0)
    assert asked.rows[0]["reward_model.style"] == "rule"
    with pytest.raises(DataError, match=r"no column 'reward_model\.truth'.*did you mean 'reward_model\.ground_truth'"):
        load(source, DataConfig(columns={"answer": "reward_model.truth"}), seed=0)


def test_a_key_inside_of_null_is_null(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1", "a": {"b": {"c": "2"}}}, {"prompt": "?", "a": None}, {"prompt": "?", "a": {"b": None}}]
    loaded = load(Source(jsonl(tmp_path / "rows.jsonl", *rows)), DataConfig(columns={"answer": "a.b.c"}), seed=0)
    assert [row["answer"] for row in loaded.rows] == ["2", None, None]
    name = jsonl(tmp_path / "none.jsonl", {"prompt": "?", "a": 7}, {"prompt": "?"})
    for wrong in ("a.b", "b.c"):
        with pytest.raises(DataError, match=rf"none.jsonl, line 1: no column '{wrong}'"):
            load(Source(name), DataConfig(columns={"answer": wrong}), seed=0)


def test_a_column_whose_own_name_has_dots(tmp_path: Path) -> None:
    name = jsonl(tmp_path / "rows.jsonl", {"prompt": "1+1", "a.b": "2", "a": {"b": 3}})
    assert load(Source(name), DataConfig(columns={"answer": "a.b"}), seed=0).rows[0]["answer"] == "2"


def test_a_pattern_names_files_in_order_and_each_row_s_file(tmp_path: Path) -> None:
    for number in (1, 0):
        jsonl(tmp_path / f"train-{number}.jsonl", {"prompt": f"{number}a"}, "", {"prompt": f"{number}b"})
    loaded = load(Source(f"{tmp_path}/train-*.jsonl"), DataConfig(), seed=0)
    assert [row["prompt"] for row in loaded.rows] == ["0a", "0b", "1a", "1b"]
    assert [loaded.where(index) for index in (1, 2, 3)] == [
        f"{tmp_path}/train-0.jsonl, line 3",
        f"{tmp_path}/train-1.jsonl, line 1",
        f"{tmp_path}/train-1.jsonl, line 3",
    ]
    with pytest.raises(ConfigError, match=r"data: no file matches .*/test-\*\.jsonl"):
        load(Source(f"{tmp_path}/test-*.jsonl"), DataConfig(), seed=0)
    jsonl(tmp_path / "train-[0].jsonl", {"prompt": "a file's own name"})
    assert len(load(Source(f"{tmp_path}/train-[0].jsonl"), DataConfig(), seed=0).rows) == 1


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    import datasets

    train, test = (datasets.Dataset.from_list([{"prompt": name}]) for name in ("a", "b"))
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "two")
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert load(Source(one, split="train"), DataConfig(), seed=0).rows == [{"prompt": "a"}]
    assert load(Source(two, split="test"), DataConfig(), seed=0).rows == [{"prompt": "b"}]
    with pytest.raises(ConfigError, match="has no split 'tset': did you mean 'test'"):
        load(Source(two, split="tset"), DataConfig(), seed=0)
    with pytest.raises(ConfigError, match="it has no subset and no options"):
        load(Source(two, split="test", subset="main"), DataConfig(), seed=0)
    with pytest.raises(ConfigError, match="one' has no split"):
        sources_of({"name": one, "split": "test"}, "data.eval", DataConfig())


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
