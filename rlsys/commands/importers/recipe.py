"""A recipe on its way from their options to ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlsys.commands.importers.options import ABSENT, NoDefault, Option, default_at, latest_default


@dataclass(frozen=True)
class RunSize:
    """What a recipe needs to know and its file does not say."""

    num_processes: int | None = None  # of their trainer; None: what the file says, or 1
    num_rows: int | None = None  # of the training data, to turn epochs into steps


class Recipe:
    """Options given and their defaults on one side, our keys written so far on the other.

    Every option ends in one place: written by a rule (or the same here), unsupported, or moot.
    """

    def __init__(self, options: Mapping[str, Option], given: Mapping[str, Any], version: str, size: RunSize) -> None:
        self.size = size
        self.version = version
        self.written: dict[str, Any] = {}
        self.unsupported: dict[str, str] = {}
        self.ignored: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self.remarks: list[str] = []
        self._given = given
        self._settled: dict[str, Any] = {}
        self._options = options
        self._defaults = {name: default_at(option, version) for name, option in options.items()}

    def value(self, name: str) -> Any:
        """What a rule settled, else what the file says, else their default; None when there is neither."""
        if name in self._settled:
            return self._settled[name]
        found = self._given.get(name)
        if found is None:
            found = self._defaults.get(name)
        return None if isinstance(found, NoDefault) else found

    def detail(self, name: str) -> Any:
        """The same; where the version does not have the option yet, the default that it came to have.

        For the details of an option that a file sets, which then was written for a later version.
        """
        value = self.value(name)
        newest = latest_default(self._options[name])
        return (
            newest if value is None and self._defaults[name] is ABSENT and not isinstance(newest, NoDefault) else value
        )

    def given(self, name: str) -> bool:
        """Whether the file sets the option to something."""
        return self._given.get(name) is not None

    def default(self, name: str) -> Any:
        """Their default; ABSENT or NONE_STATED when there is none."""
        return self._defaults[name]

    def settle(self, name: str, value: Any) -> None:
        """For the rules that follow, the option has this value, whatever the file says."""
        self._settled[name] = value

    def write(self, key: str, value: Any) -> None:
        """Set our `key`."""
        self.written[key] = value

    def mark_unsupported(self, name: str, reason: str) -> None:
        """The option's value is not supported."""
        self.unsupported.setdefault(name, reason)

    def mark_ignored(self, name: str, reason: str) -> None:
        """The option has no effect in this recipe."""
        self.ignored.setdefault(name, reason)

    def note(self, name: str, text: str) -> None:
        """A difference that remains, to be read beside the option."""
        self.notes[name] = f"{self.notes[name]}; {text}" if name in self.notes else text

    def remark(self, text: str) -> None:
        """Something about the whole recipe."""
        self.remarks.append(text)
