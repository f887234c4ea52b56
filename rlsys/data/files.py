"""Files of rows: the formats, and the line at which a file is wrong."""

from __future__ import annotations

import bz2
import contextlib
import csv
import dataclasses
import glob
import gzip
import io
import json
import lzma
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rlsys.config.paths import expand, is_file
from rlsys.errors import ConfigError, DataError

# The reader of `datasets` for each suffix.
READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
# Compressed files have one of these suffixes behind their own.
OPENERS: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def reader_of(name: str) -> str | None:
    """Return the reader of a file by its suffix, compressed or not; None for a name that is no file of rows."""
    return READERS.get(Path(_uncompressed(name)).suffix.lower())


def title_of(name: str) -> str:
    """Return the last part of a name, without the suffixes of a file of rows: `a/b-1.5.jsonl.gz` is `b-1.5`."""
    return Path(_uncompressed(name)).stem if reader_of(name) else Path(name).name


def files_of(name: str) -> list[str]:
    """Return the files that a pattern such as `train-*.parquet` matches, sorted; any other name alone.

    Raises ConfigError for a pattern without a match.
    """
    if not is_pattern(name):
        return [name]
    found = sorted(glob.glob(str(expand(name)), recursive=True))
    if not found:
        raise ConfigError(f"data: no file matches {expand(name).absolute()}")
    return found


def is_pattern(name: str) -> bool:
    """Return whether a name stands for several files of rows."""
    return glob.has_magic(name) and reader_of(name) is not None and not is_file(name)


def json_rows(name: str) -> list[dict[str, Any]]:
    """Return the rows of a file with a JSON object per line, or with a list of rows, with the values as written.

    Raises ValueError for text that is not UTF-8 or JSON, whose line `describe_fault` finds, and DataError for rows that
    are no objects.
    """
    path = expand(name)
    if _has_lines(path):
        rows = [json.loads(text) for _, text in _lines(path)]
    else:
        with _open_text(path) as file:
            rows = json.load(file)
        if not isinstance(rows, list):
            raise DataError(f"{name}: a json file must hold a list of rows, or one row per line; this is {_kind(rows)}")
    if not all(isinstance(row, dict) for row in rows):
        check_file(name)  # names the first one
    return rows


@contextlib.contextmanager
def uncompressed(name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a file without compression, a temporary copy where it has one, and options for its reader in `datasets`."""
    path = expand(name)
    if path.suffix.lower() not in OPENERS:
        yield path, {}
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / _uncompressed(path.name)
        with _open(path) as packed, copy.open("wb") as file:
            shutil.copyfileobj(packed, file)
        # The copy has another name each time, so the cache of `datasets` would never be used again.
        yield copy, {"cache_dir": folder}


def csv_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for the reader of a csv file: those `given`, and ours that keep texts as they are.

    The answer `007` stays a text and `null` a word; an empty field is a missing value. Raises ConfigError when the
    options leave columns without names.
    """
    import datasets
    import pandas
    from datasets.packaged_modules.csv.csv import CsvConfig

    if given.get("engine", "c") != "c":
        raise ConfigError(
            f"data '{name}': options.engine={given['engine']!r} would turn texts into numbers: leave engine out"
        )
    # index_col=False: else the reader makes the first field of a row with too many an index, and shifts the others.
    reading = {"keep_default_na": False, "na_values": [""], "index_col": False, "engine": "c"} | dict(given)
    config = CsvConfig(**{key: value for key, value in reading.items() if key in _reader_options()})
    # The header alone, read with the same options, gives the names of the columns.
    header = {**config.pd_read_csv_kwargs, "nrows": 0, "chunksize": None}
    columns = list(pandas.read_csv(expand(name), **header).columns)
    if not all(isinstance(column, str) for column in columns):
        raise ConfigError(f"data '{name}': options {dict(given)} leave columns without names: add column_names")
    # Every column is read as text: the reader would turn `007` into 7.
    features = datasets.Features({column: datasets.Value("string") for column in columns})
    return {"features": features} | reading


def place_in_file(name: str, number: int) -> str:
    """Return the place of row `number` (from 0) for messages: its line if each has one, blank lines included."""
    path = expand(name)
    if reader_of(name) == "json" and path.is_file() and _has_lines(path):
        for row, (line, _) in enumerate(_lines(path)):
            if row == number:
                return f"{name}, line {line}"
    return f"{name}, row {number + 1}"


def check_file(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Raise DataError for the first line that cannot be read."""
    wrong = describe_fault(name, options or {})
    if wrong is not None:
        raise DataError(wrong)


def describe_fault(name: str, options: Mapping[str, Any]) -> str | None:
    """Return the first line of a file that cannot be read, and why; None when all can, or when a file has no lines.

    The readers themselves name a whole block of the file only. `options` are the reader's.
    """
    path = expand(name)
    kind = reader_of(name)
    found = None if kind == "parquet" or "encoding" in options else _not_utf8(path, kind)
    if found is None and kind == "csv":
        found = _wrong_csv(path, options)
    elif found is None and kind == "json":
        found = _wrong_jsonl(path) if _has_lines(path) else _wrong_json(path)
    return None if found is None else f"{name}, {found}"


def _not_utf8(path: Path, kind: str | None) -> str | None:
    """Return the first line that is not UTF-8, or None."""
    advice = "save the file as UTF-8" + (", or name its encoding in options.encoding" if kind == "csv" else "")
    with _open(path) as file:
        for line, data in enumerate(file, start=1):
            try:
                data.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {line}: not UTF-8: byte {error.start + 1} is 0x{data[error.start]:02x}; {advice}"
    return None


def _wrong_jsonl(path: Path) -> str | None:
    for line, text in _lines(path):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            return f"line {line}: not JSON: {error.msg} at character {error.pos + 1}: {text.strip()[:80]!r}"
        if not isinstance(row, dict):
            return f"line {line}: a row must be an object with named columns, this is {_kind(row)}"
    return None


def _wrong_json(path: Path) -> str | None:
    try:
        with _open_text(path) as file:
            rows = json.load(file)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: not JSON: {error.msg} at character {error.colno}"
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        if not isinstance(row, dict):
            return f"row {number + 1}: a row must be an object with named columns, this is {_kind(row)}"
    return None


def _wrong_csv(path: Path, options: Mapping[str, Any]) -> str | None:
    """Return the first line with more fields than columns: pandas would shift its values or drop the rest."""
    delimiter = str(options.get("delimiter") or options.get("sep") or ",")
    if len(delimiter) != 1 or (_reader_options() & options.keys()) - {"delimiter", "sep"}:
        return None  # with other options the reader alone knows what a line must hold
    csv.field_size_limit(sys.maxsize)  # a long document is a field too
    with _open_text(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = next(filter(None, reader), [])
        for row in reader:
            if len(row) > len(header):
                return f"line {reader.line_num}: {len(row)} fields, but the first line names {len(header)} columns"
    return None


def _reader_options() -> set[str]:
    """Return the options of the csv reader, without those of `datasets.load_dataset`."""
    from datasets.packaged_modules.csv.csv import CsvConfig

    return {option.name for option in dataclasses.fields(CsvConfig)}


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _has_lines(path: Path) -> bool:
    """Return whether a JSON file has one value per line: by its suffix, or by its first line."""
    if Path(_uncompressed(path.name)).suffix.lower() == ".jsonl":
        return True
    _, first = next(_lines(path), (0, ""))
    if not first.lstrip().startswith("{"):  # a list, which may be the whole of a large file: not read for this
        return False
    try:
        json.loads(first)
    except json.JSONDecodeError:  # an object over several lines
        return False
    return True


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, numbered from 1."""
    with _open_text(path) as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                yield number, text


def _open_text(path: Path, newline: str | None = None) -> IO[str]:
    """Open a file of text. A byte order mark, as spreadsheets and Windows write it, is no part of the text."""
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline=newline)


def _open(path: Path) -> IO[bytes]:
    return OPENERS.get(path.suffix.lower(), open)(path, "rb")


def _uncompressed(name: str) -> str:
    return name.removesuffix(suffix) if (suffix := Path(name).suffix).lower() in OPENERS else name
