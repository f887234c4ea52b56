"""Results as a table for people and as JSON for later."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import facts

RESULTS = Path(__file__).parent / "results"


def header(module: str, arguments: list[str] | None = None) -> dict[str, Any]:
    """The command line and the facts about the machine; taken before measuring, when the load is still others'."""
    given = sys.argv[1:] if arguments is None else arguments
    return {"command": " ".join(["python", "-m", module, *given]), **facts()}


def table(title: str, columns: list[str]) -> Table:
    """An empty table: a name on the left, numbers right-aligned."""
    made = Table(title=title)
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left")
    return made


def show(made: Table) -> None:
    """Print to the terminal."""
    # Into a file or a pipe rich would squeeze the table into 80 columns.
    Console(width=None if sys.stdout.isatty() else 160).print(made)


def number(value: float | None, digits: int = 2) -> str:
    """A cell; a dash where there is nothing."""
    return "-" if value is None else f"{value:,.{digits}f}"


def write(name: str, content: dict[str, Any]) -> Path:
    """`benchmarks/results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
