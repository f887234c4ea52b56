"""A run's folder as it lies on disk, read without the classes that wrote it: an older run reads as well."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from rlsys.errors import DataError, RlsysError, nearest

NUMBERED = re.compile(r"\d{8}-\d{6}|\d+")
"""Folder names that say little without their parent's: a time, or the number of a sweep's job."""


@dataclass(frozen=True)
class RunFolder:
    """`rows` hold every step's numbers, in order of steps; what is not a finite number is None."""

    path: Path
    name: str
    config: dict[str, Any]
    rows: list[dict[str, float | None]]
    rollouts: list[Path]
    timelines: list[Path]


def read_run(path: Path) -> RunFolder:
    """Raises RlsysError when `path` is not a run's folder or no step has finished, DataError for an unreadable file."""
    path = existing_folder(path)
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        raise RlsysError(f"{metrics} is missing: give the folder of a run, the one that holds its config.yaml")
    rows = read_metrics(metrics)
    if not rows:
        raise RlsysError(f"{metrics} is empty: the run has not finished a step yet")
    return RunFolder(
        path,
        run_name(path),
        read_config(path),
        rows,
        sorted((path / "rollouts").glob("step-*.jsonl"), key=last_number),
        sorted(path.glob("timeline*.json"), key=last_number),
    )


def existing_folder(path: Path) -> Path:
    """The folder's whole path. Raises RlsysError, with the nearest name beside it, when there is none."""
    path = path.expanduser().resolve()
    if path.is_dir():
        return path
    beside = [folder.name for folder in path.parent.glob("*/")] if path.parent.is_dir() else []
    raise RlsysError(f"{path}: no such folder; {nearest(path.name, beside)}")


def run_name(path: Path) -> str:
    """The folder's name, after its parent's where it is only a time or a number."""
    name = f"{path.parent.name}/{path.name}" if NUMBERED.fullmatch(path.name) else path.name
    return name.encode("utf-8", "replace").decode()  # a file name may hold bytes that are no text


def read_config(path: Path) -> dict[str, Any]:
    """The run's configuration as plain values, empty when it left none. Raises DataError for an unreadable one."""
    file = path / "config.yaml"
    if not file.is_file():
        return {}
    try:
        config = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{file} is not readable YAML: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{file} does not hold the configuration of a run: it is not a mapping")
    return {str(key): value for key, value in config.items()}


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Rows by step; of a step that stands there twice the later. Raises DataError for a row without a step."""
    rows: dict[int, dict[str, float | None]] = {}
    for number, row in json_rows(path):
        step = finite(row.get("step"))
        if step is None:
            raise DataError(f"{path}, line {number}: no number under 'step'")
        rows[int(step)] = {key: finite(value) for key, value in row.items()}
    return [rows[step] for step in sorted(rows)]


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and the objects of a file with one a line.

    A last line without its newline is one being written, and ends the file where it is not whole. Raises DataError for
    any other line that is not an object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = _row(line, f"{path}, line {number}")
            if row is None:
                return
            yield number, row


def _row(line: bytes, where: str) -> dict[str, Any] | None:
    """The object of a line; None for one that is being written."""
    try:
        row = json.loads(line)
    except ValueError as error:
        if not line.endswith(b"\n"):
            return None
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object")
    return row


def finite(value: Any) -> float | None:
    """A number that is one, else None."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def short(value: Any, digits: int = 6) -> float | None:
    """`finite`, with no more significant digits than a reader can see."""
    number = finite(value)
    return None if number is None else float(f"{number:.{digits}g}")


def last_number(path: Path) -> int:
    """The step in a file's name; 0 where there is none, as in `timeline.json`."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else 0
