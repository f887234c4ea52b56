"""Files of rows: which kinds there are, and which line is to blame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
"""What `datasets` calls the reader of a file's kind."""


def place_in_file(name: str, number: int) -> str:
    """Row `number` (from 0) of a source, for people; of a jsonl file the line, which blank lines move on."""
    path = Path(name).expanduser()
    if path.suffix.lower() == ".jsonl" and path.is_file():
        for row, (line, _) in enumerate(_lines(path)):
            if row == number:
                return f"{name}, line {line}"
    return f"{name}, row {number + 1}"


def what_is_wrong(name: str) -> str | None:
    """The first line of a jsonl file that no reader takes, and why; None when nothing was found or it is no jsonl.

    Readers report a whole block of a file.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() != ".jsonl":
        return None
    for line, text in _lines(path):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            return f"{name}, line {line}: not JSON: {error.msg} at character {error.pos + 1}: {text.strip()[:80]!r}"
        if not isinstance(row, dict):
            return f"{name}, line {line}: a row must be an object with named columns, this is {_kind(row)}"
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
