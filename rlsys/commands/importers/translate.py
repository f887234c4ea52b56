"""A dialect's table applied to a recipe, and the report on what became of every option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.commands.importers import our_defaults
from rlsys.commands.importers.options import (
    Dialect,
    Noted,
    Option,
    Rule,
    UnsupportedError,
    default_at,
)
from rlsys.commands.importers.recipe import ABSENT, NoDefault, Recipe, RunSize
from rlsys.config.dotted import nested
from rlsys.errors import ConfigError, nearest

WRONG_KIND = (TypeError, ValueError, AttributeError, KeyError)  # what converting a value of another type raises


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
    version: str
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
    names = spellings(dialect)
    spelling: dict[str, str] = {}  # the table's name of an option to that of the file
    for name in [name for name in given if name in names]:
        if names[name] in spelling:
            raise ConfigError(f"'{spelling[names[name]]}' and '{name}' are the same option: keep one of them")
        spelling[names[name]] = name
    options = {name: given[shown] for name, shown in spelling.items()}
    recipe = Recipe(options, {name: default_at(row, version) for name, row in dialect.options.items()}, size)
    _apply_dialect(recipe, dialect)
    result = Translation(dialect.name, version, recipe.written, remarks=recipe.remarks)
    foreign = [spelling[name] for name in options if recipe.is_given(name) and recipe.default(name) is ABSENT]
    if foreign:
        result.remarks.append(
            f"{dialect.versions_of} {version} does not have {', '.join(foreign)}: --version says for which version the "
            "recipe was written"
        )
    report = _Report(result, recipe, nested(recipe.written))
    for name, value in options.items():
        report.add_given(name, spelling[name], dialect.options[name], value)
    shown = {known: name for name, known in reversed(list(dialect.aliases.items()))} if dialect.renames else {}
    for name, row in dialect.options.items():
        if not recipe.is_given(name):
            report.add_default(name, shown.get(name, name), row)
    for name in [name for name in given if name not in names]:
        reason = f"{dialect.name} has no such option; {nearest(name, names)}"
        result.unknown.append(UntranslatedOption(name, given[name], reason))
    return result


def spellings(dialect: Dialect) -> dict[str, str]:
    """Return every name that a file of this dialect may use, with the table's name of that option."""
    renamed = set(dialect.aliases.values()) if dialect.renames else set()
    return {name: name for name in dialect.options if name not in renamed} | dict(dialect.aliases)


def _apply_dialect(recipe: Recipe, dialect: Dialect) -> None:
    recipe.written.update(dialect.always)
    for name, row in dialect.options.items():
        if row.uses_newest and recipe.default(name) is ABSENT and not recipe.is_given(name):
            recipe.settle(name, default_at(row, None))
    for rule in dialect.prepare:
        _run_rule(recipe, rule)
    # Steps first: warm-up, checkpoints and evaluation are counted in them.
    for name, row in sorted(dialect.options.items(), key=lambda item: not _sets_steps(item[1])):
        try:
            _apply_row(recipe, name, row)
        except WRONG_KIND as error:
            raise ConfigError(f"{name}={recipe.value(name)!r}: {error}") from error
    recipe.written = our_defaults.with_function_nodes(recipe.written)
    for rule in dialect.rules:
        _run_rule(recipe, rule)


def _sets_steps(row: Option) -> bool:
    return any(key.startswith("train.") for key in row.writes)


def _run_rule(recipe: Recipe, rule: Rule) -> None:
    try:
        rule(recipe)
    except WRONG_KIND as error:
        raise ConfigError(
            f"a value of the recipe is not of the kind that its option has ({rule.__module__.rpartition('.')[2]}."
            f"{rule.__name__}): {type(error).__name__}: {error}"
        ) from error


def _apply_row(recipe: Recipe, name: str, row: Option) -> None:
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
        for key in row.writes:
            _write(recipe, name, row, key, value)
        if row.note:
            recipe.note(name, row.note)


def _write(recipe: Recipe, name: str, row: Option, key: str, value: Any) -> None:
    """Write one key of a row, unless the value has no counterpart."""
    try:
        found = row.writes[key](recipe, value)
    except UnsupportedError as error:
        found = error
    if isinstance(found, UnsupportedError):
        recipe.mark_unsupported(name, found.reason.format(value=value, key=key, instead=found.instead))
        found = found.instead
    if isinstance(found, Noted):
        recipe.note(name, found.note)
        found = found.value
    if found is not ABSENT:
        recipe.write(key, found)


@dataclass(frozen=True)
class _Report:
    """The lists of a translation while they are filled."""

    result: Translation
    recipe: Recipe
    tree: Mapping[str, Any]  # what was written, nested

    def add_given(self, name: str, shown: str, row: Option, value: Any) -> None:
        """Add an option that the file sets to one of the lists."""
        if name in self.recipe.unsupported:
            self.result.unsupported.append(UntranslatedOption(shown, value, self.recipe.unsupported[name]))
        elif name in self.recipe.ignored:
            self.result.ignored.append(UntranslatedOption(shown, value, self.recipe.ignored[name]))
        else:
            written = {} if value is None else self._written((*row.keys, *row.also))
            note = "null: left to its default" if value is None else self.recipe.notes.get(name, "")
            self.result.translated.append(TranslatedOption(shown, value, written, note))

    def add_default(self, name: str, shown: str, row: Option) -> None:
        """List an option that the file does not set where its default makes a run differ from one of rlsys."""
        theirs, reason = self.recipe.default(name), self.recipe.unsupported.get(name)
        note = reason or self.recipe.notes.get(name, "")
        if isinstance(theirs, NoDefault) or (
            not reason and (name in self.recipe.ignored or (theirs is None and not note))
        ):
            return  # without a default, without effect, or reported beside the option that decides
        here = our_defaults.defaults()
        changed = {
            key: value
            for key, value in self._written(row.keys).items()
            if our_defaults.look_up(key, here) != (list(value) if isinstance(value, tuple) else value)
        }
        if changed or reason:
            old = {key: our_defaults.look_up(key, here) for key in changed}
            ours = {key: None if value is our_defaults.MISSING else value for key, value in old.items()}
            self.result.defaults.append(ChangedDefault(shown, theirs, ours, changed, note, is_supported=not reason))

    def _written(self, keys: Sequence[str]) -> dict[str, Any]:
        found = {key: our_defaults.look_up(key, self.tree) for key in keys}
        return {key: value for key, value in found.items() if value is not our_defaults.MISSING}
