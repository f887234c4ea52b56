"""Files of rows: which kinds there are, and which line is to blame."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsys.errors import DataError

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
"""What `datasets` calls the reader of a file's kind."""


def json_rows(name: str) -> list[dict[str, Any]]:
    """Rows of a jsonl file, or of a json file with a list of them, with the values as they are written. Raises
    DataError naming the line."""
    wrong = what_is_wrong(name)
    if wrong is not None:
        raise DataError(wrong)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".jsonl":
        return [json.loads(text) for _, text in _lines(path)]
    rows = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    if not isinstance(rows, list):
        raise DataError(f"{name}: a json file holds a list of rows, this is {_kind(rows)}")
    return rows


def csv_options(name: str) -> dict[str, Any]:
    """For the reader of a csv file, so that texts stay what they are: an answer `007` is no number, `null` is a word;
    an empty field is missing."""
    import datasets

    with Path(name).expanduser().open(encoding="utf-8", errors="replace", newline="") as file:
        header = next(csv.reader(file), [])
    features = datasets.Features({column: datasets.Value("string") for column in header})
    return {"features": features, "keep_default_na": False, "na_values": [""]}


def place_in_file(name: str, number: int) -> str:
    """Row `number` (from 0) of a source, for people; of a jsonl file the line, which blank lines move on."""
    path = Path(name).expanduser()
    if path.suffix.lower() == ".jsonl" and path.is_file():
        for row, (line, _) in enumerate(_lines(path)):
            if row == number:
                return f"{name}, line {line}"
    return f"{name}, row {number + 1}"


def what_is_wrong(name: str) -> str | None:
    """The first line of a file that no reader takes, and why; None when nothing was found, or in files without lines.

    Readers report a whole block of a file.
    """
    path = Path(name).expanduser()
    look = {".jsonl": _wrong_jsonl, ".json": _wrong_json, ".csv": _wrong_csv}.get(path.suffix.lower())
    found = look(path) if look is not None else None
    return None if found is None else f"{name}, {found}"


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
        rows = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: not JSON: {error.msg} at character {error.colno}"
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        if not isinstance(row, dict):
            return f"row {number + 1}: a row must be an object with named columns, this is {_kind(row)}"
    return None


def _wrong_csv(path: Path) -> str | None:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        for row in reader:
            if len(row) > len(header):
                return f"line {reader.line_num}: {len(row)} fields, but the first line names {len(header)} columns"
    return None


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered from 1."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                yield number, text
