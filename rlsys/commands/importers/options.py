"""The columns of a dialect's table: what becomes of each option of another project.

One option is one row. A row says which keys of rlsys the option sets and how its value is converted, when it has no
effect, which values have no counterpart, and what remains different. `translate` goes through the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlsys.commands.importers.recipe import ABSENT, NONE_STATED, Recipe

Compute = Callable[[Recipe, Any], Any]  # the recipe and the option's value to the value of a key, ABSENT for none
Rule = Callable[[Recipe], None]  # what a table cannot express: reads options of a recipe and writes keys


@dataclass(frozen=True)
class ByVersion:
    """A default that changed: each value with the version from which it holds, oldest first."""

    since: Mapping[str, Any]


class UnsupportedError(Exception):
    """A value without counterpart: why, and the value written in its place (ABSENT: none).

    A conversion raises it; a value map holds it. The reason is a format of `value`, `key` and `instead`.
    """

    def __init__(self, reason: str, instead: Any = ABSENT) -> None:
        super().__init__(reason)
        self.reason = reason
        self.instead = instead


@dataclass(frozen=True)
class Noted:
    """A converted value with a difference that remains."""

    value: Any
    note: str


@dataclass(frozen=True)
class Condition:
    """A condition on other options under which a row applies; otherwise its option is ignored.

    With `is_loss` the option is unsupported instead, unless its value is a neutral one.
    """

    options: tuple[str, ...]
    holds: Callable[..., bool]  # called with the values of `options`
    reason: str = ""  # shown when it does not hold; {0} is the value of the first of `options`; "": nothing is reported
    is_loss: bool = False

    def is_met(self, recipe: Recipe) -> bool:
        """Return whether it holds in a recipe."""
        return bool(self.holds(*map(recipe.value, self.options)))


@dataclass(frozen=True)
class TableRow:
    """One row of a table."""

    default: Any  # a value, a ByVersion, ABSENT or NONE_STATED
    writes: Mapping[str, Compute] = field(default_factory=dict)  # keys that the row sets
    keys: tuple[str, ...] = ()  # keys that the option decides, which its report shows
    also: tuple[str, ...] = ()  # keys that other options decide and that it influences
    when: Condition | tuple[Condition, ...] = ()
    unsupported: str = ""  # why no value but the neutral ones is supported
    neutral: tuple[Any, ...] = ()  # values that ask for nothing, so need no support
    ignored: str = ""  # why it never has an effect
    note: str = ""  # what remains different where the row has an effect
    notes: Mapping[Any, str] = field(default_factory=dict)  # what remains different for these values
    reads_none: bool = False  # `writes` also convert the value None
    words: tuple[str, ...] = ()  # words that a switch takes beside true and false
    uses_newest: bool = False  # where the version lacks the option, the default with which it came counts

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Return `when` as a tuple."""
        return self.when if isinstance(self.when, tuple) else (self.when,)


def several(
    default: Any, writes: Mapping[str, Compute], keys: tuple[str, ...] | None = None, **columns: Any
) -> TableRow:
    """Return a row that sets several keys; `keys` are those of them that it decides (default: all)."""
    return TableRow(default, writes, tuple(writes) if keys is None else keys, **columns)


def same(key: str, default: Any, **columns: Any) -> TableRow:
    """Return a row whose option means what `key` means."""
    return computed(key, default, lambda _, value: value, **columns)


def converted(key: str, default: Any, convert: Callable[[Any], Any], **columns: Any) -> TableRow:
    """Return a row that sets `key` to the converted value; `convert` may raise UnsupportedError."""
    return computed(key, default, plain(convert), **columns)


def mapped(key: str, default: Any, values: Mapping[Any, Any], otherwise: Any = ABSENT, **columns: Any) -> TableRow:
    """Return a row that looks the value up in a map, whose values may be Noted or UnsupportedError."""
    return computed(key, default, by_map(values, otherwise), **columns)


def switched(key: str, default: Any, on: Any, off: Any = ABSENT, **columns: Any) -> TableRow:
    """Return a row of a switch: `key` is `on` or `off` (ABSENT: not written)."""
    return computed(key, default, lambda _, value: on if value else off, **columns)


def computed(key: str, default: Any, compute: Compute, **columns: Any) -> TableRow:
    """Return a row whose key depends on several options."""
    return several(default, {key: compute}, **columns)


def by_rule(*keys: str, default: Any, **columns: Any) -> TableRow:
    """Return a row that another row or a rule of the dialect reads."""
    return TableRow(default, keys=keys, **columns)


def unsupported(reason: str, default: Any = None, neutral: tuple[Any, ...] = (None, False), **columns: Any) -> TableRow:
    """Return a row without counterpart, unless the option has a `neutral` value."""
    return TableRow(default, unsupported=reason, neutral=neutral, **columns)


def ignored(reason: str, default: Any = NONE_STATED) -> TableRow:
    """Return a row about something that rlsys does by itself or does not have: nothing is lost without it."""
    return TableRow(default, ignored=reason)


def plain(convert: Callable[[Any], Any]) -> Compute:
    """Return the conversion of a value by itself."""
    return lambda _, value: convert(value)


def by_map(values: Mapping[Any, Any], otherwise: Any = ABSENT) -> Compute:
    """Return the conversion by a map."""
    return lambda _, value: values.get(value, otherwise)


def needs(name: str, reason: str | None = None) -> Condition:
    """Return the condition that an option is on."""
    return Condition((name,), bool, f"{name} is false" if reason is None else reason)


def only_if(name: str, *values: Any, reason: str = "", is_loss: bool = False) -> Condition:
    """Return the condition that an option has one of these values."""
    return Condition((name,), lambda value: value in values, reason, is_loss)


def unless(name: str, *values: Any, reason: str = "", is_loss: bool = False) -> Condition:
    """Return the condition that an option has none of these values."""
    return Condition((name,), lambda value: value not in values, reason, is_loss)


def unless_set(name: str, reason: str | None = None) -> Condition:
    """Return the condition that another option, which would replace this one, has no value."""
    return only_if(name, None, reason=reason or f"{name} replaces it")


def without(name: str, reason: str) -> Condition:
    """Return the condition that an option is off or empty."""
    return Condition((name,), lambda value: not value, reason)


@dataclass(frozen=True)
class Dialect:
    """One project's way of writing a recipe."""

    name: str
    options: Mapping[str, TableRow]
    rules: tuple[Rule, ...]  # applied after the table
    versions: tuple[str, ...]  # oldest first, of the project whose defaults change with them
    default_version: str
    versions_of: str
    unique_options: tuple[str, ...]  # options that only this project has: they identify its recipes
    aliases: Mapping[str, str] = field(default_factory=dict)  # other spellings of options: old names, nested ones
    renames: bool = False  # `aliases` are the project's own names for options that the table has from elsewhere
    unique_rewards: frozenset[str] = frozenset()  # names of rewards that only this project has
    prepare: tuple[Rule, ...] = ()  # applied before the table: they settle values
    always: Mapping[str, Any] = field(default_factory=dict)  # keys written for every recipe, which rows may replace
    requires: Mapping[str, str] = field(default_factory=dict)  # options without which it is another training: which
    null_is_value: bool = False  # null in a file replaces a default; elsewhere the default holds then
    by_argparse: bool = False  # transformers' parser: `--learning-rate` too, and `--no_shuffle` for what is on
    interpolates: bool = False  # `${...}` in a value refers to another one, as OmegaConf has it


def version_key(version: str) -> tuple[int, ...]:
    """Return a sort key: 1.10 comes after 1.8. Raises ValueError when a part is not a number."""
    return tuple(int(part) for part in version.split("."))


def default_at(row: TableRow, version: str | None) -> Any:
    """Return the option's default in `version`; None: in the newest version that has the option."""
    if not isinstance(row.default, ByVersion):
        return row.default
    since = row.default.since.items()
    if version is None:
        return [value for _, value in since if value is not ABSENT][-1]
    return [ABSENT, *(value for first, value in since if version_key(first) <= version_key(version))][-1]
