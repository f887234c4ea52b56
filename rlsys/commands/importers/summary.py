"""The lists of an import on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlsys.commands.importers.translate import Translation
from rlsys.config.written import shown

LONGEST = 60  # characters of a value that are shown
CONSTANTS = {None: "null", True: "true", False: "false"}


def show(result: Translation, console: Console) -> None:
    """Print every list that has entries, and the two lists of most interest when they are empty."""
    left = ("option", "value", "why")
    changed = ("option", "their default", "rlsys default", "written", "note")
    taken = [
        (row.option, row.value, _keys(row.written) or "same as the default", row.note) for row in result.translated
    ]
    differing = [
        (row.option, row.theirs, ", ".join(map(brief, row.ours.values())), _keys(row.written) or "nothing", row.note)
        for row in result.defaults
    ]
    lists: dict[str, tuple[Sequence[str], Iterable[Sequence[Any]]]] = {
        "Translated": (("option", "value", "written", "note"), taken),
        "Default differs (not set in the file)": (changed, differing),
        "Not supported": (left, [(row.option, row.value, row.reason) for row in result.unsupported]),
        "Ignored": (left, [(row.option, row.value, row.reason) for row in result.ignored]),
        "Unknown": (left, [(row.option, row.value, row.reason) for row in result.unknown]),
    }
    for title, (columns, rows) in lists.items():
        if rows:
            console.print(_table(title, columns, rows))
        elif title in ("Translated", "Not supported"):
            console.print(f"{title}: nothing")
    for remark in result.remarks:
        console.print(f"note: {escape(shown(remark))}")


def brief(value: Any) -> str:
    """Return a value on one line, as YAML writes it in flow style, shortened to LONGEST characters."""
    text = " ".join(_flow(value).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return shown(value)
    return CONSTANTS[value] if value is None or isinstance(value, bool) else str(value)


def _keys(written: Mapping[str, Any]) -> str:
    return "\n".join(f"{key}={brief(value)}" for key, value in written.items())


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=False, expand=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for name, value, *texts in rows:
        table.add_row(*(escape(shown(text)) for text in (name, brief(value), *texts)))
    return table
