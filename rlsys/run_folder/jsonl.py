"""Files with one JSON object per line: writing them, and reading them while a run may still be writing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlsys.errors import DataError
from rlsys.metrics.formatting import finite

# Lone surrogates (half a character, which JSON of a model may hold) cannot be encoded as UTF-8: write them as \uXXXX.
SURROGATES = "backslashreplace"


@contextmanager
def row_writer(path: Path, *, mode: str = "w") -> Iterator[Callable[[Iterable[dict[str, Any]]], None]]:
    """Open a file for one object per line, a new one or with `mode="a"` its end.

    Values that JSON does not know are written as text.
    """

    def write(rows: Iterable[dict[str, Any]]) -> None:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)

    with path.open(mode, encoding="utf-8", errors=SURROGATES) as file:
        yield write


def num_lines(path: Path) -> int:
    """Return the number of lines of a file."""
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line numbers, from 1, and the objects of a file with one object per line.

    A last line without its newline is being written: an incomplete one is left out.

    Raises:
        DataError: any other line is not a JSON object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = _object(line, f"{path}, line {number}")
            if row is None:
                return
            yield number, row


def _object(line: bytes, where: str) -> dict[str, Any] | None:
    """Return the object of a line; None for one that is being written."""
    try:
        row = json.loads(line)
    except ValueError as error:
        if not line.endswith(b"\n"):
            return None
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object")
    return row


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Return the rows of a metrics file in order of steps; of a step written twice, the later row.

    Raises:
        DataError: a row has no step.
    """
    rows = {}
    for number, row in json_rows(path):
        step, numbers = _metrics(row, f"{path}, line {number}")
        rows[step] = numbers  # a step that was run again after a resume replaces the earlier row
    return [rows[step] for step in sorted(rows)]


class MetricsFollower:
    """A reader of the new rows of a metrics file, which grows, and which a resumed run cuts back to its checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._lines: dict[int, bytes] = {}  # the last line seen of each step

    def rows(self) -> list[dict[str, float | None]]:
        """Return the rows that are new or changed since the last call.

        Raises:
            DataError: a whole line is not a row of metrics.
        """
        rows = []
        for line in self._new_lines():
            try:
                row: Any = json.loads(line)
            except ValueError as error:
                raise DataError(f"{self._path}: not JSON ({error}): {line[:80]!r}") from error
            step, numbers = _metrics(row, f"{self._path}: {line[:80]!r}")
            if self._lines.get(step) != line:  # a file that was cut back is read again from its start
                self._lines[step] = line
                rows.append(numbers)
        return rows

    def _new_lines(self) -> list[bytes]:
        """Return the whole lines after the last one read, or all lines if the file has become shorter."""
        if not self._path.is_file():
            self._offset = 0
            return []
        with self._path.open("rb") as file:
            if self._path.stat().st_size < self._offset:
                self._offset = 0
            file.seek(self._offset)
            data = file.read()
        # A line without its end is being written: it is read again with its end.
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()


def _metrics(row: Any, where: str) -> tuple[int, dict[str, float | None]]:
    """Return a row's step and its numbers, None for what is not finite. Raises DataError for a row without a step."""
    step = finite(row.get("step")) if isinstance(row, dict) else None
    if step is None:
        raise DataError(f"{where}: no number under 'step'")
    return int(step), {key: finite(value) for key, value in row.items()}
