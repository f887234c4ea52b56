"""One recipe while it is translated: its option values on one side, the keys of rlsys written so far on the other."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class NoDefault(enum.Enum):
    """What stands in a table where an option has no default value."""

    ABSENT = "absent"  # the version does not have the option
    NONE_STATED = "none stated"  # there is none, or something outside the file decides it


ABSENT = NoDefault.ABSENT
NONE_STATED = NoDefault.NONE_STATED


@dataclass(frozen=True)
class RunSize:
    """Numbers that a recipe depends on and that its file may not state."""

    num_processes: int | None = None  # of their trainer; None: what the file says, or 1
    num_rows: int | None = None  # of the training data, to turn epochs into steps


class Recipe:
    """The options of one recipe, and what has become of them so far.

    An option is written as keys of rlsys (or needs none, where rlsys does the same by default), or is marked as
    unsupported, or as ignored. Each is reported once: unsupported comes before ignored, the first reason counts.
    """

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any], size: RunSize) -> None:
        self.size = size
        self.written: dict[str, Any] = {}
        self.unsupported: dict[str, str] = {}
        self.ignored: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.remarks: list[str] = []
        self._given = given
        self._defaults = defaults
        self._settled: dict[str, Any] = {}

    def value(self, name: str) -> Any:
        """Return the settled value of an option, else the file's, else the default, else None."""
        if name in self._settled:
            return self._settled[name]
        found = self._given.get(name)
        found = self._defaults.get(name) if found is None else found
        return None if isinstance(found, NoDefault) else found

    def is_given(self, name: str) -> bool:
        """Return whether the file sets the option to a value."""
        return self._given.get(name) is not None

    def default(self, name: str) -> Any:
        """Return the option's default in the recipe's version, or the NoDefault in its place."""
        return self._defaults[name]

    def settle(self, name: str, value: Any) -> None:
        """Replace the option's value for everything that follows; the report still shows what the file says."""
        self._settled[name] = value

    def write(self, key: str, value: Any) -> None:
        """Set a key of rlsys."""
        self.written[key] = value

    def mark_unsupported(self, name: str, reason: str) -> None:
        """Report that rlsys cannot do what the option asks for."""
        self.unsupported.setdefault(name, reason)

    def mark_ignored(self, name: str, reason: str) -> None:
        """Report that the option has no effect in this recipe or in rlsys."""
        self.ignored.setdefault(name, reason)

    def note(self, name: str, text: str) -> None:
        """Report a difference that remains beside the option."""
        self.notes[name] = f"{self.notes[name]}; {text}" if name in self.notes else text
