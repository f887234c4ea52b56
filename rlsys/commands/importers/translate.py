"""A recipe's options to ours, every one of them accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.commands.importers import our_defaults
from rlsys.commands.importers.options import ABSENT, Dialect, NoDefault, Option, Rule, UnsupportedError
from rlsys.commands.importers.recipe import Recipe, RunSize
from rlsys.config.dotted import nested
from rlsys.errors import ConfigError, nearest


@dataclass(frozen=True)
class TranslatedOption:
    """An option of the file that has a counterpart; `written` is empty where ours does the same by itself."""

    option: str
    value: Any
    written: dict[str, Any]
    note: str


@dataclass(frozen=True)
class ChangedDefault:
    """An option that the file leaves to its default, where theirs is not ours."""

    option: str
    theirs: Any
    ours: dict[str, Any]
    written: dict[str, Any]
    note: str
    is_supported: bool = True  # false: what theirs does could not be written, and the note says why


@dataclass(frozen=True)
class UntranslatedOption:
    """An option of the file that was not taken over, and why."""

    option: str
    value: Any
    reason: str


@dataclass
class Translation:
    """Of the options given, each stands in exactly one of `taken`, `unsupported`, `moot` and `unknown`."""

    dialect: str
    version: str
    written: dict[str, Any] = field(default_factory=dict)  # by dotted key, what our defaults say included
    translated: list[TranslatedOption] = field(default_factory=list)
    defaults: list[ChangedDefault] = field(default_factory=list)
    unsupported: list[UntranslatedOption] = field(default_factory=list)
    ignored: list[UntranslatedOption] = field(default_factory=list)
    unknown: list[UntranslatedOption] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """What an experiment file needs to say: the differences from our defaults, nested."""
        return nested(our_defaults.differences(self.written))


def translate(given: Mapping[str, Any], dialect: Dialect, version: str, size: RunSize) -> Translation:
    """Turn options of theirs, by dotted name, into ours. Raises ConfigError for a recipe that cannot work."""
    result = Translation(dialect.name, version)
    spelling: dict[str, str] = {}  # the table's name of an option, to that of the file
    options: dict[str, Any] = {}
    names = spellings(dialect)
    for name, value in given.items():
        known = names.get(name, "")
        if not known:
            hint = nearest(name, names)
            result.unknown.append(UntranslatedOption(name, value, f"{dialect.name} has no such option; {hint}"))
        elif known in spelling:
            raise ConfigError(f"'{spelling[known]}' and '{name}' are the same option: keep one of them")
        else:
            spelling[known], options[known] = name, value
    recipe = Recipe(dialect.options, options, version, size)
    for name, option in dialect.options.items():
        _apply(recipe, name, option)
    for rule in dialect.rules:
        _run_rule(recipe, rule)
    foreign = [spelling[name] for name in options if recipe.given(name) and recipe.default(name) is ABSENT]
    if foreign:
        recipe.remark(
            f"{dialect.versions_of} {version} does not have {', '.join(foreign)}: --version says for which version the "
            "recipe was written"
        )
    result.written, result.remarks = recipe.written, recipe.remarks
    tree = nested(recipe.written)
    for name in options:
        _account(result, recipe, name, spelling[name], dialect.options[name], options[name], tree)
    shown = {known: name for name, known in reversed(list(dialect.aliases.items()))} if dialect.renames else {}
    for name, option in dialect.options.items():
        if not recipe.given(name):
            _compare(result, recipe, name, shown.get(name, name), option, tree)
    return result


def spellings(dialect: Dialect) -> dict[str, str]:
    """Every name that a file of this dialect may use, with the table's name of that option."""
    renamed = set(dialect.aliases.values()) if dialect.renames else set()
    return {name: name for name in dialect.options if name not in renamed} | dict(dialect.aliases)


def _run_rule(recipe: Recipe, rule: Rule) -> None:
    try:
        rule(recipe)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"a value of the recipe is not of the kind that its option has ({rule.__module__.rpartition('.')[2]}."
            f"{rule.__name__}): {type(error).__name__}: {error}"
        ) from error


def _apply(recipe: Recipe, name: str, option: Option) -> None:
    """Refusals, and options that are ours one to one."""
    value = recipe.value(name)
    if option.ignored is not None:
        recipe.mark_ignored(name, option.ignored)
    elif option.unsupported is not None:
        if value is not None and not any(value == n and type(value) is type(n) for n in option.neutral):
            recipe.mark_unsupported(name, option.unsupported)
    elif option.convert is not None and value is not None:
        (key,) = option.keys
        try:
            recipe.write(key, option.convert(value))
        except UnsupportedError as error:
            recipe.mark_unsupported(name, str(error))
            if error.instead is not ABSENT:
                recipe.write(key, error.instead)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name}={value!r}: {error}") from error


def _written(keys: Sequence[str], tree: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: our_defaults.look_up(key, tree) for key in keys}
    return {key: value for key, value in found.items() if value is not our_defaults.MISSING}


def _account(
    result: Translation, recipe: Recipe, name: str, shown: str, option: Option, value: Any, tree: Mapping[str, Any]
) -> None:
    if name in recipe.unsupported:
        result.unsupported.append(UntranslatedOption(shown, value, recipe.unsupported[name]))
    elif name in recipe.ignored:
        result.ignored.append(UntranslatedOption(shown, value, recipe.ignored[name]))
    elif value is None:
        result.translated.append(TranslatedOption(shown, value, {}, "null: left to its default"))
    else:
        written = _written((*option.keys, *option.also), tree)
        result.translated.append(TranslatedOption(shown, value, written, recipe.notes.get(name, "")))


def _compare(
    result: Translation, recipe: Recipe, name: str, shown: str, option: Option, tree: Mapping[str, Any]
) -> None:
    """List the option when what its default makes is not what ours makes."""
    theirs = recipe.default(name)
    is_refused = name in recipe.unsupported
    if isinstance(theirs, NoDefault) or (name in recipe.ignored and not is_refused):
        return
    if theirs is None and name not in recipe.notes and not is_refused:
        return  # unset: what others decide is listed with them
    written = _written(option.keys, tree)
    here = {key: our_defaults.look_up(key, our_defaults.defaults()) for key in written}
    changed = [key for key, value in written.items() if here[key] != (list(value) if type(value) is tuple else value)]
    if changed or is_refused:
        old = {key: None if here[key] is our_defaults.MISSING else here[key] for key in changed}
        new = {key: written[key] for key in changed}
        note = recipe.unsupported[name] if is_refused else recipe.notes.get(name, "")
        result.defaults.append(ChangedDefault(shown, theirs, old, new, note, is_supported=not is_refused))
