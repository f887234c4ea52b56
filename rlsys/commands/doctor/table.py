"""Lines of the doctor's output: results of checks, and tables of numbers."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from rlsys.runtime.findings import Finding, Level

STYLES = {Level.OK: "green", Level.NOTE: "", Level.WARN: "yellow", Level.FAIL: "bold red"}
WIDTH = 18  # of the names


def show_findings(title: str, findings: Sequence[Finding]) -> None:
    """Print one line per finding; nothing where there is none."""
    if not findings:
        return
    show_title(title)
    for finding in findings:
        line = Text(f"{finding.level:<5}", style=STYLES[finding.level])
        show(line.append(f"{finding.name:<{WIDTH}} {finding.text}", style="default"))


def show_title(title: str) -> None:
    """Print the title of a section."""
    show(Text(f"\n{title}", style="bold"))


def show(line: str | Text) -> None:
    """Print a line as it is, however long it is."""
    Console().print(line, soft_wrap=True, markup=False, highlight=False)


def show_rows(rows: Sequence[Sequence[str]], *, numbers: bool = True) -> None:
    """Print cells in columns; `numbers` puts all but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        padded = [
            cell.rjust(width) if numbers else cell.ljust(width) for cell, width in zip(cells, widths, strict=True)
        ]
        show("  ".join([cells[0].ljust(widths[0]), *padded[1:]]).rstrip())
