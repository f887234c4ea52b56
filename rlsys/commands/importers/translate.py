"""A dialect's table applied to a recipe, and the report on what became of every option."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rlsys.commands.importers import our_defaults
from rlsys.commands.importers.option_values import typed_value
from rlsys.commands.importers.options import (
    Compute,
    Dialect,
    Noted,
    Rule,
    TableRow,
    UnsupportedError,
    default_at,
)
from rlsys.commands.importers.recipe import ABSENT, NoDefault, Recipe, RunSize
from rlsys.config.dotted import nested
from rlsys.config.written import with_requests
from rlsys.errors import ConfigError, nearest

WRONG_KIND = (
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
)  # what converting a value of another type raises


@dataclass(frozen=True)
class TranslatedOption:
    """An option of the file that has a counterpart; `written` is empty where rlsys does the same by default."""

    option: str
    value: Any
    written: dict[str, Any]
    note: str


@dataclass(frozen=True)
class ChangedDefault:
    """An option that the file does not set and whose default differs from that of rlsys."""

    option: str
    theirs: Any
    ours: dict[str, Any]
    written: dict[str, Any]
    note: str
    is_supported: bool = True  # false: rlsys cannot do what the default does, and `note` says why


@dataclass(frozen=True)
class UntranslatedOption:
    """An option of the file that was not taken over, and why."""

    option: str
    value: Any
    reason: str


@dataclass
class Translation:
    """A translated recipe. Every option given is in one of `translated`, `unsupported`, `ignored` and `unknown`."""

    dialect: str
    version: str  # whose defaults unset options have, such as `trl 1.16`
    written: dict[str, Any] = field(default_factory=dict)  # by dotted key; also what rlsys does by default
    translated: list[TranslatedOption] = field(default_factory=list)
    defaults: list[ChangedDefault] = field(default_factory=list)
    unsupported: list[UntranslatedOption] = field(default_factory=list)
    ignored: list[UntranslatedOption] = field(default_factory=list)
    unknown: list[UntranslatedOption] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """Return what an experiment file has to set: the differences from the defaults of rlsys, nested."""
        return nested(our_defaults.differences(self.written))


def translate(given: Mapping[str, Any], dialect: Dialect, version: str, size: RunSize) -> Translation:
    """Translate options, given by dotted name. Raises ConfigError for a recipe that cannot work."""
    names, spelling = spellings(dialect), _spelling(given, dialect)
    options = {name: typed_value(shown, given[shown], dialect.options[name]) for name, shown in spelling.items()}
    defaults = {name: default_at(row, version) for name, row in dialect.options.items()}
    changed = (name for name, value in options.items() if value is None and defaults[name] is not None)
    nulls = {name for name in changed if dialect.null_is_value and not isinstance(defaults[name], NoDefault)}
    recipe = Recipe(options, defaults, size, frozenset(nulls))
    _apply_dialect(recipe, dialect)
    foreign = [spelling[name] for name in options if recipe.is_given(name) and recipe.defaults[name] is ABSENT]
    if foreign:
        recipe.remarks.append(
            f"{dialect.versions_of} {version} does not have {', '.join(foreign)}: say with --version for which version "
            "the recipe was written"
        )
    result = Translation(dialect.name, f"{dialect.versions_of} {version}", recipe.written, remarks=recipe.remarks)
    shown = {known: name for name, known in reversed(list(dialect.aliases.items()))} if dialect.renames else {}
    report = _Report(result, recipe, nested(recipe.written))
    for name, row in dialect.options.items():
        if not recipe.is_given(name):
            report.add_default(name, shown.get(name, name), row)
    for name, value in given.items():
        if name in names:
            report.add_given(names[name], name, dialect.options[names[name]], value)
        else:
            reason = f"{dialect.name} has no such option; {nearest(name, names)}"
            result.unknown.append(UntranslatedOption(name, value, reason))
    # What was made of a text of the environment is written, and shown, as it was asked for.
    return cast(Translation, with_requests(result, given))


def spellings(dialect: Dialect) -> dict[str, str]:
    """Return every name that a file of this dialect may use, with the table's name of that option."""
    renamed = set(dialect.aliases.values()) if dialect.renames else set()
    return {name: name for name in dialect.options if name not in renamed} | dict(dialect.aliases)


def _spelling(given: Mapping[str, Any], dialect: Dialect) -> dict[str, str]:
    """Return the table's name of every option given with that of the file."""
    names = spellings(dialect)
    found: dict[str, str] = {}
    for name in [name for name in given if name in names]:
        if found.setdefault(names[name], name) != name:
            raise ConfigError(f"'{found[names[name]]}' and '{name}' are the same option: keep one of them")
    return found


def _apply_dialect(recipe: Recipe, dialect: Dialect) -> None:
    recipe.written |= dialect.always
    for name, row in dialect.options.items():
        if row.uses_newest and recipe.defaults[name] is ABSENT and not recipe.is_given(name):
            recipe.settled[name] = default_at(row, None)
    # Steps first: warm-up, checkpoints and evaluation are counted in them.
    rows = sorted(dialect.options.items(), key=lambda item: not any(key.startswith("train.") for key in item[1].writes))
    actions: list[tuple[str, Rule]] = [
        *((rule.__name__, rule) for rule in dialect.prepare),
        *((name, functools.partial(_apply_row, name=name, row=row)) for name, row in rows),
        ("functions", lambda recipe: our_defaults.gather_function_options(recipe.written)),
        *((rule.__name__, rule) for rule in dialect.rules),
    ]
    for name, action in actions:
        try:
            action(recipe)
        except WRONG_KIND as error:
            where = f"{name}={recipe.value(name)!r}" if name in dialect.options else f"the recipe's {name}"
            raise ConfigError(f"{where}: {error}") from error


def _apply_row(recipe: Recipe, name: str, row: TableRow) -> None:
    """Apply one row of the table."""
    value = recipe.value(name)
    asks_for_nothing = value is None or any(value == n and type(value) is type(n) for n in row.neutral)
    for condition in row.conditions:
        if condition.is_met(recipe) or (condition.is_loss and asks_for_nothing):
            continue
        if condition.reason:
            mark = recipe.mark_unsupported if condition.is_loss else recipe.mark_ignored
            mark(name, condition.reason.format(*map(recipe.value, condition.options)))
        return
    if row.ignored:
        recipe.mark_ignored(name, row.ignored)
    elif row.unsupported and not asks_for_nothing:
        recipe.mark_unsupported(name, row.unsupported)
    elif value is not None or row.reads_none:
        for key, compute in row.writes.items():
            found = _outcome(recipe, name, key, compute)
            if found is not ABSENT:
                recipe.written[key] = found
            elif name in recipe.unsupported:
                return
    elif row.writes and name in recipe.nulls:
        recipe.mark_unsupported(name, f"null is not read here, so the default {recipe.defaults[name]!r} is not either")
    for note in [row.note if value is not None else "", *(text for asked, text in row.notes.items() if asked == value)]:
        if note:
            recipe.note(name, note)


def _outcome(recipe: Recipe, name: str, key: str, compute: Compute) -> Any:
    """Return what an option's value becomes as the value of `key`, ABSENT for nothing."""
    value = recipe.value(name)
    try:
        found = compute(recipe, value)
    except UnsupportedError as error:
        found = error
    if isinstance(found, UnsupportedError):
        recipe.mark_unsupported(name, found.reason.format(value=value, key=key, instead=found.instead))
        return found.instead
    if isinstance(found, Noted):
        recipe.note(name, found.note)
        return found.value
    return found


@dataclass(frozen=True)
class _Report:
    """The lists of a translation while they are filled."""

    result: Translation
    recipe: Recipe
    tree: Mapping[str, Any]  # what was written, nested

    def add_given(self, name: str, shown: str, row: TableRow, value: Any) -> None:
        """Add an option that the file sets to one of the lists."""
        if name in self.recipe.unsupported:
            self.result.unsupported.append(UntranslatedOption(shown, value, self.recipe.unsupported[name]))
        elif name in self.recipe.ignored:
            self.result.ignored.append(UntranslatedOption(shown, value, self.recipe.ignored[name]))
        else:
            is_default = value is None and name not in self.recipe.nulls
            written = {} if is_default else self._written((*row.keys, *row.also))
            note = "null: the default applies" if is_default else self.recipe.notes.get(name, "")
            self.result.translated.append(TranslatedOption(shown, value, written, note))

    def add_default(self, name: str, shown: str, row: TableRow) -> None:
        """List an option that the file does not set where its default makes a run differ from one of rlsys."""
        theirs, reason = self.recipe.defaults[name], self.recipe.unsupported.get(name)
        note = reason or self.recipe.notes.get(name, "")
        has_effect = name not in self.recipe.ignored and (theirs is not None or note)  # else others report what decides
        if isinstance(theirs, NoDefault) or not (reason or has_effect):
            return
        written = self._written(row.keys)
        ours = {key: our_defaults.look_up(key, our_defaults.defaults()) for key in row.keys}
        changed = [
            key for key, value in written.items() if ours[key] != (list(value) if type(value) is tuple else value)
        ]
        if changed or reason:
            # What rlsys does instead of a default that it does not support is its own default.
            old = {key: None if ours[key] is our_defaults.MISSING else ours[key] for key in changed or row.keys}
            new = {key: written[key] for key in changed}
            self.result.defaults.append(ChangedDefault(shown, theirs, old, new, note, is_supported=not reason))

    def _written(self, keys: Sequence[str]) -> dict[str, Any]:
        found = {key: our_defaults.look_up(key, self.tree) for key in keys}
        return {key: value for key, value in found.items() if value is not our_defaults.MISSING}
