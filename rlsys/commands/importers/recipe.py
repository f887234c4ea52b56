"""One recipe while it is translated: its option values on one side, the keys of rlsys written so far on the other."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class NoDefault(enum.Enum):
    """Entries of a table where an option has no default value."""

    ABSENT = "absent"  # the version does not have the option
    NONE_STATED = "none stated"  # there is none, or something outside the file decides it


ABSENT = NoDefault.ABSENT
NONE_STATED = NoDefault.NONE_STATED


@dataclass(frozen=True)
class RunSize:
    """Numbers that a recipe depends on and that its file may not state."""

    num_processes: int | None = None  # ranks of their trainer; None: what the file says, or 1
    num_rows: int | None = None  # rows of the training data, to turn epochs into steps


@dataclass
class Recipe:
    """The options of one recipe, and what has become of them so far.

    An option is written as keys of rlsys (or needs none, where rlsys does the same by default), or is marked as
    unsupported, or as ignored. Each is reported once: unsupported comes before ignored, the first reason counts.
    """

    given: Mapping[str, Any]  # by the names of the table
    defaults: Mapping[str, Any]  # in the recipe's version; a NoDefault where there is none
    size: RunSize
    nulls: frozenset[str] = frozenset()  # options that the file sets to null in place of another default
    settled: dict[str, Any] = field(default_factory=dict)  # values that replace the file's; the report shows the file's
    written: dict[str, Any] = field(default_factory=dict)  # keys of rlsys, dotted
    unsupported: dict[str, str] = field(default_factory=dict)  # reasons by option, as are the next two
    ignored: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)  # about the whole recipe

    def value(self, name: str) -> Any:
        """Return the settled value of an option, else the file's, else the default, else None."""
        if name in self.settled:
            return self.settled[name]
        found = self.given[name] if self.is_given(name) else self.defaults.get(name)
        return None if isinstance(found, NoDefault) else found

    def is_given(self, name: str) -> bool:
        """Return whether the file sets the option to a value, or to a null that is one."""
        return self.given.get(name) is not None or name in self.nulls

    def mark_unsupported(self, name: str, reason: str) -> None:
        """Report that rlsys cannot do what the option asks for."""
        self.unsupported.setdefault(name, reason)

    def mark_ignored(self, name: str, reason: str) -> None:
        """Report that the option has no effect in this recipe or in rlsys."""
        self.ignored.setdefault(name, reason)

    def note(self, name: str, text: str) -> None:
        """Report a difference that remains beside the option."""
        self.notes[name] = f"{self.notes[name]}; {text}" if name in self.notes else text
