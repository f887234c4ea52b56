"""The lists of an import on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlsys.commands.importers.translate import Translation, UntranslatedOption

LONGEST = 60
"""Characters of a value that are shown."""


def show(result: Translation, console: Console) -> None:
    """Print every list that has something in it."""
    taken = _table("Taken over", "option", "value", "here", "note")
    for row in result.translated:
        taken.add_row(*_cells(row.option, brief(row.value), _keys(row.written) or "the same by itself", row.note))
    changed = _table("Default differs (the file does not set it)", "option", "theirs", "ours", "written", "note")
    for default in result.defaults:
        written = _keys(default.written) or "nothing"
        ours = ", ".join(brief(value) for value in default.ours.values())
        changed.add_row(*_cells(default.option, brief(default.theirs), ours, written, default.note))
    tables = [taken, changed, _left("Not supported", result.unsupported), _left("No meaning here", result.ignored)]
    for table in [*tables, _left("Unknown", result.unknown)]:
        if table.row_count:
            console.print(table)
        elif table.title in ("Taken over", "Not supported"):
            console.print(f"{table.title}: nothing")
    for remark in result.remarks:
        console.print(f"note: {escape(remark)}")


def brief(value: Any) -> str:
    """A value in few words, as YAML has it on one line."""
    text = " ".join(_flow(value).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _keys(written: Mapping[str, Any]) -> str:
    return "\n".join(f"{key}={brief(value)}" for key, value in written.items())


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=False, expand=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _left(title: str, rows: Sequence[UntranslatedOption]) -> Table:
    table = _table(title, "option", "value", "why")
    for row in rows:
        table.add_row(*_cells(row.option, brief(row.value), row.reason))
    return table


def _cells(*texts: str) -> list[str]:
    return [escape(text) for text in texts]
