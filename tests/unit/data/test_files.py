"""Rows from registered sources and from files."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.schema import DataConfig
from rlsys.data.addition import addition
from rlsys.data.encode import check_rows
from rlsys.data.loading import load
from rlsys.data.sources import Source, absolute_sources, sources_of
from rlsys.errors import ConfigError, DataError

Rows = list[dict[str, Any]]
ROWS = [{"prompt": "1+1=", "answer": "two"}, {"prompt": 'a, "b"', "answer": "né"}]


def load_rows(value: Any, split: str, config: DataConfig) -> Rows:
    config.train_split = split
    (source,) = sources_of(value, "data.train", config)
    return load(source, config, seed=0).rows


def write_jsonl(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text(json.dumps(rows))


def write_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Sequence[dict[str, str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


FORMATS = [("jsonl", write_jsonl), ("json", write_json), ("csv", write_csv), ("parquet", write_parquet)]


@pytest.mark.parametrize(("suffix", "write"), [*FORMATS, ("json", write_jsonl)])
def test_a_file_gives_its_rows_in_order(tmp_path: Path, suffix: str, write: Callable[[Path, Any], None]) -> None:
    path = tmp_path / f"rows.{suffix}"
    write(path, ROWS)
    assert load_rows(str(path), "train", DataConfig()) == ROWS


@pytest.mark.parametrize(("suffix", "write"), FORMATS)
@pytest.mark.parametrize("packed", ["gz", "bz2", "xz"])
def test_a_compressed_file_gives_the_same_rows(
    tmp_path: Path, suffix: str, write: Callable[[Path, Any], None], packed: str
) -> None:
    write(tmp_path / f"rows.{suffix}", ROWS)
    packing = {"gz": gzip, "bz2": bz2, "xz": lzma}[packed]
    path = tmp_path / f"rows.{suffix}.{packed}"
    path.write_bytes(packing.compress((tmp_path / f"rows.{suffix}").read_bytes()))
    assert load_rows(str(path), "train", DataConfig()) == ROWS


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        ("jsonl", '{"text": "a"}\n'),
        ("json", '{"text": "a"}'),
        ("json", '[{"text": "a"}]'),
        ("csv", "text\na\n"),
        ("txt", "a\n"),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, suffix: str, text: str, packed: str) -> None:
    data = text.encode("utf-8-sig")
    path = tmp_path / f"rows.{suffix}{packed}"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert load_rows(str(path), "train", DataConfig(prompt_column="text")) == [{"text": "a"}]


@pytest.mark.parametrize("text", ['{"rows": []}', '{\n"prompt": "a"\n}', "7", '"a"'])
def test_a_json_file_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    prompts = DataConfig()
    with pytest.raises(DataError, match=r"must hold a list of rows, or one row per line|no prompt column"):
        check_rows(load(Source(str(tmp_path / "rows.json")), prompts, seed=0), "prompt")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("rows.jsonl.gz", b"no gzip", "rows.jsonl.gz' cannot be read: BadGzipFile"),
        ("rows.csv.gz", gzip.compress(b"prompt\na\n", mtime=0)[:-9], "rows.csv.gz' cannot be read: EOFError"),
        (
            "rows.jsonl",
            b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "rows.jsonl' cannot be read: RecursionE",
        ),
        ("empty.csv", b"", "empty.csv' cannot be read: EmptyDataError"),
        ("rows.tsv", b"prompt\na\n", "rows.tsv': a file of rows ends in .jsonl, .json, .parquet, .csv, .txt"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_rows(str(tmp_path / name), "train", DataConfig())
    assert said in str(caught.value)


def test_options_go_to_the_reader_or_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", ROWS)
    options = {"cache_dir": str(tmp_path / "cache")}
    assert load_rows(str(tmp_path / "rows.parquet"), "train", DataConfig(options=options)) == ROWS
    assert (tmp_path / "cache").is_dir()
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ConfigError, match="a json file has no options, remove cache_dir"):
        load_rows(str(tmp_path / "rows.jsonl"), "train", DataConfig(options=options))


def test_texts_stay_what_they_are(tmp_path: Path) -> None:
    """No reader's guess makes a number, a date or nothing of an answer."""
    (tmp_path / "rows.csv").write_text("prompt,answer\na,007\nb,null\nc,\nd,2.0\n")
    answers = [row["answer"] for row in load_rows(str(tmp_path / "rows.csv"), "train", DataConfig())]
    assert answers == ["007", "null", None, "2.0"]
    rows = [{"prompt": "a", "answer": "2020-01-01"}, {"prompt": "b", "answer": 7}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_rows(str(tmp_path / "rows.jsonl"), "train", DataConfig()) == rows


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("prompt;answer\na, b;007\n", {"sep": ";"}),
        ("a, b|007\n", {"delimiter": "|", "column_names": ["prompt", "answer"]}),
        ("prompt\tid\tanswer\na, b\t1\t007\n", {"sep": "\t", "usecols": ["prompt", "answer"]}),
        ('\ufeffprompt,answer\n"a, b",007\n', {}),
        ('\ufeff"prompt",answer\n"a, b",007\n', {}),
        ('\nprompt,answer\n"a, b",007\n', {}),
    ],
)
def test_a_csv_file_of_another_layout_keeps_its_texts(tmp_path: Path, text: str, options: dict[str, Any]) -> None:
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    rows = load_rows(str(tmp_path / "rows.csv"), "train", DataConfig(options=options))
    assert rows == [{"prompt": "a, b", "answer": "007"}]


def test_a_csv_file_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,answer\na,é\n", encoding="cp1252")
    rows = load_rows(str(tmp_path / "rows.csv"), "train", DataConfig(options={"encoding": "cp1252"}))
    assert rows == [{"prompt": "a", "answer": "é"}]


def test_a_long_field_of_a_csv_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"prompt,answer\n{'a' * 200_000},b\n")
    (row,) = load_rows(str(tmp_path / "rows.csv"), "train", DataConfig())
    assert len(row["prompt"]) == 200_000


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"header": None}, ConfigError, "leave columns without names: add column_names"),
        ({"engine": "python"}, ConfigError, "options.engine='python' would turn texts into numbers"),
        ({"sep": "::"}, DataError, "the 'c' engine does not support"),
        ({"spe": ";"}, DataError, "spe"),
    ],
)
def test_csv_options_that_cannot_keep_texts_or_names_are_refused(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    (tmp_path / "rows.csv").write_text("prompt,answer\na,007\n")
    with pytest.raises(kind) as caught:
        load_rows(str(tmp_path / "rows.csv"), "train", DataConfig(options=options))
    assert said in str(caught.value)


def test_chat_messages_survive(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "1+1"}], "answer": "2"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps(rows[0]) + "\n")
    config = DataConfig()
    assert load_rows(str(tmp_path / "chat.jsonl"), "train", config) == rows


def test_addition_is_right_and_its_splits_are_disjoint() -> None:
    train, test = (addition(split, max_operand=9, held_out=20, seed=3) for split in ("train", "test"))
    assert (len(train), len(test)) == (80, 20)  # of 10 * 10 sums
    prompts = {row["prompt"] for row in train} | {row["prompt"] for row in test}
    assert len(prompts) == 100
    for row in [*train, *test]:
        first, second = row["prompt"].removesuffix("=").split("+")
        assert int(row["answer"]) == int(first) + int(second)


def test_addition_depends_on_its_seed_alone() -> None:
    assert addition("test", max_operand=9, seed=3) == addition("test", max_operand=9, seed=3)
    assert addition("test", max_operand=30, seed=3) != addition("test", max_operand=30, seed=4)


@pytest.mark.parametrize("split", ["validation", "Test"])
def test_addition_has_two_splits_and_no_other(split: str) -> None:
    # Anything else taken for `train` would evaluate on what was trained on.
    with pytest.raises(ConfigError, match="train"):
        addition(split)


def test_a_registered_source_with_its_options() -> None:
    rows = load_rows("addition", "test", DataConfig(options={"held_out": 5, "max_operand": 9}))
    assert rows == addition("test", held_out=5, max_operand=9)
    with pytest.raises(ConfigError, match="data source 'addition' has no option 'held_ou'; accepted options: held_out"):
        load_rows("addition", "test", DataConfig(options={"held_ou": 5}))


def test_a_source_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text("def rows(split, *, n=1):\n    return [{'prompt': split}] * n\n")
    config = DataConfig(options={"n": 2})
    assert load_rows(f"{tmp_path}/source.py:rows", "train", config) == [{"prompt": "train"}] * 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", r"source\.py:rows' failed: ZeroDivisionError: division by zero \(.*source\.py, line 2\)"),
        ("return [{'prompt': 'a'}, 'b']", r"source\.py:rows': row 2 is str, not a dict"),
        ("return None", r"source\.py:rows' failed: TypeError"),
    ],
)
def test_a_source_of_ones_own_that_fails_is_named(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "source.py").write_text(f"def rows(split):\n    {body}\n")
    with pytest.raises(DataError, match=said):
        load_rows(f"{tmp_path}/source.py:rows", "train", DataConfig())


@pytest.mark.parametrize("name", ["a\0b.jsonl", "x" * 5000 + ".jsonl", "x" * 5000, "https://a/b.jsonl"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    assert absolute_sources(name) == name
    with pytest.raises(
        (ConfigError, DataError), match=r"no such file|cannot be read as|data_files: 'https://a/b\.jsonl'"
    ):
        load_rows(name, "train", DataConfig())


@pytest.mark.parametrize("options", [{"held_out": -1}, {"max_operand": 2.5}, {"seed": -3}])
def test_addition_takes_whole_numbers_only(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data source 'addition': option '.*' is .*, it must be a whole number"):
        load_rows("addition", "test", DataConfig(options=options))


def test_what_cannot_be_read_is_named_with_the_nearest_source(tmp_path: Path) -> None:
    config = DataConfig()
    with pytest.raises(DataError, match=r"data './aditoin' cannot be read"):
        load_rows("./aditoin", "train", config)
    with pytest.raises(ConfigError, match=r"data: no such file: .*rows\.csv"):
        load_rows(str(tmp_path / "rows.csv"), "train", config)
