"""The output of a benchmark: a table in the terminal and a JSON file under benchmarks/results/."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import facts

RESULTS = Path(__file__).parent / "results"
PROCESSOR = "RLSYS_BENCHMARK_PROCESSOR"  # set by `benchmarks.avx2`, which pretends an older one


def header(module: str, arguments: list[str] | None = None) -> dict[str, Any]:
    """Return the command line and the facts about the machine.

    Call it before measuring, while the load average shows only what other processes cause.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if PROCESSOR in os.environ:
        module = f"benchmarks.{os.environ[PROCESSOR]} {module.removeprefix('benchmarks.')}"
    return {"command": " ".join(["python", "-m", module, *given]), **facts()}


def table(title: str, columns: list[str]) -> Table:
    """Return an empty table with names left-aligned in the first column and numbers right-aligned in the others."""
    made = Table(title=title)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left")
    return made


def show(made: Table) -> None:
    """Print a table to the terminal."""
    # When printing to a file or a pipe, rich would squeeze the table into 80 columns.
    Console(width=None if sys.stdout.isatty() else 160).print(made)


def number(value: float | None, digits: int = 2) -> str:
    """Format a number as a table cell; None becomes a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def write(name: str, content: dict[str, Any]) -> Path:
    """Write the content to `benchmarks/results/<name>.json`, or `<name>_<processor>.json`, and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = _path(name)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def update(name: str, content: dict[str, Any]) -> Path:
    """Write the content as `write` does, and keep what other commands have written under other keys."""
    path = _path(name)
    return write(name, {**(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}), **content})


def _path(name: str) -> Path:
    processor = os.environ.get(PROCESSOR)
    return RESULTS / (f"{name}_{processor}.json" if processor else f"{name}.json")
