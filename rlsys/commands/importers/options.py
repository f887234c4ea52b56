"""What an importer knows of another project's options: where each goes, or why it goes nowhere."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlsys.commands.importers.recipe import Recipe


class NoDefault(enum.Enum):
    """What a default may be besides a value."""

    ABSENT = "absent"  # the version does not have the option
    NONE_STATED = "none stated"  # there is none, or it is decided by something that the file does not hold


ABSENT = NoDefault.ABSENT
NONE_STATED = NoDefault.NONE_STATED
Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class ByVersion:
    """A default that changed: each value with the version from which on it holds, oldest first."""

    since: Mapping[str, Any]


class UnsupportedError(Exception):
    """A value that has no counterpart; `instead` is written in its place (ABSENT: nothing is)."""

    def __init__(self, reason: str, instead: Any = ABSENT) -> None:
        super().__init__(reason)
        self.instead = instead


@dataclass(frozen=True)
class Option:
    """One option of theirs; made by the functions below."""

    default: Any  # a value, a ByVersion, ABSENT or NONE_STATED
    keys: tuple[str, ...] = ()  # ours that it decides
    also: tuple[str, ...] = ()  # ours that others decide, and that it enters
    convert: Convert | None = None  # its value to that of the only key; None: a rule of the dialect reads it
    unsupported: str | None = None  # why it is not supported
    neutral: tuple[Any, ...] = ()  # values that ask for nothing, so need no support
    ignored: str | None = None  # why it has no meaning here


def same(key: str, default: Any) -> Option:
    """An option that means what ours means."""
    return Option(default, (key,), convert=lambda value: value)


def converted(key: str, default: Any, convert: Convert) -> Option:
    """An option whose value becomes ours by `convert`, which may raise UnsupportedError."""
    return Option(default, (key,), convert=convert)


def by_rule(*keys: str, default: Any, also: tuple[str, ...] = ()) -> Option:
    """An option that a rule of the dialect reads; it decides `keys`, and enters what others decide (`also`)."""
    return Option(default, keys, also)


def unsupported(reason: str, default: Any = None, neutral: tuple[Any, ...] = (None, False)) -> Option:
    """An option without counterpart, unless its value is a `neutral` one, which asks for nothing."""
    return Option(default, unsupported=reason, neutral=neutral)


def ignored(reason: str) -> Option:
    """An option about something that rlsys does by itself, or does not have: nothing is lost by leaving it out."""
    return Option(NONE_STATED, ignored=reason)


Rule = Callable[["Recipe"], None]
"""Reads options of a recipe, writes ours; may refuse an option, or say that it has no effect."""


@dataclass(frozen=True)
class Dialect:
    """One project's way of writing a recipe."""

    name: str
    options: Mapping[str, Option]
    rules: tuple[Rule, ...]
    versions: tuple[str, ...]  # oldest first, of the project that the defaults drift with
    default_version: str
    versions_of: str
    unique_options: tuple[str, ...]  # options that only this project has: by them it is told from the others
    aliases: Mapping[str, str] = field(default_factory=dict)  # other spellings of options: old names, nested ones
    renames: bool = False  # `aliases` are the project's own names for options that the table has from elsewhere
    unique_rewards: frozenset[str] = frozenset()  # names of rewards that only this project has


def version_key(version: str) -> tuple[int, ...]:
    """Versions in order: 1.10 comes after 1.8. Raises ValueError when it is not numbers and dots."""
    return tuple(int(part) for part in version.split("."))


def latest_default(option: Option) -> Any:
    """The newest default of an option, ABSENT only where no version has it."""
    if not isinstance(option.default, ByVersion):
        return option.default
    return next((value for value in reversed(list(option.default.since.values())) if value is not ABSENT), ABSENT)


def default_at(option: Option, version: str) -> Any:
    """The option's default in `version`."""
    if not isinstance(option.default, ByVersion):
        return option.default
    value: Any = ABSENT
    for since, changed in option.default.since.items():
        if version_key(since) <= version_key(version):
            value = changed
    return value
