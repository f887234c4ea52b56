"""A recipe's options to ours, every one of them accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.commands.importers import ours
from rlsys.commands.importers.draft import Draft, Setting
from rlsys.commands.importers.options import ABSENT, Dialect, Mark, NotSupportedError, Option, Rule
from rlsys.config.dotted import nested
from rlsys.errors import ConfigError, nearest


@dataclass(frozen=True)
class Taken:
    """An option of the file that has a counterpart; `written` is empty where ours does the same by itself."""

    option: str
    value: Any
    written: dict[str, Any]
    note: str


@dataclass(frozen=True)
class Changed:
    """An option that the file leaves to its default, where theirs is not ours."""

    option: str
    theirs: Any
    ours: dict[str, Any]
    written: dict[str, Any]
    note: str
    is_supported: bool = True  # false: what theirs does could not be written, and the note says why


@dataclass(frozen=True)
class Left:
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
    taken: list[Taken] = field(default_factory=list)
    defaults: list[Changed] = field(default_factory=list)
    unsupported: list[Left] = field(default_factory=list)
    moot: list[Left] = field(default_factory=list)
    unknown: list[Left] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """What an experiment file needs to say: the differences from our defaults, nested."""
        return nested(ours.differences(self.written))


def translate(given: Mapping[str, Any], dialect: Dialect, version: str, setting: Setting) -> Translation:
    """Turn options of theirs, by dotted name, into ours. Raises ConfigError for a recipe that cannot work."""
    result = Translation(dialect.name, version)
    spelling: dict[str, str] = {}  # the table's name of an option, to that of the file
    options: dict[str, Any] = {}
    names = spellings(dialect)
    for name, value in given.items():
        known = names.get(name, "")
        if not known:
            hint = nearest(name, names)
            result.unknown.append(Left(name, value, f"{dialect.name} has no such option; {hint}"))
        elif known in spelling:
            raise ConfigError(f"'{spelling[known]}' and '{name}' are the same option: keep one of them")
        else:
            spelling[known], options[known] = name, value
    draft = Draft(dialect.options, options, version, setting)
    for name, option in dialect.options.items():
        _apply(draft, name, option)
    for rule in dialect.rules:
        _obey(draft, rule)
    foreign = [spelling[name] for name in options if draft.given(name) and draft.default(name) is ABSENT]
    if foreign:
        draft.remark(
            f"{dialect.versions_of} {version} does not have {', '.join(foreign)}: --version says for which version the "
            "recipe was written"
        )
    result.written, result.remarks = draft.written, draft.remarks
    tree = nested(draft.written)
    for name in options:
        _account(result, draft, name, spelling[name], dialect.options[name], options[name], tree)
    shown = {known: name for name, known in reversed(list(dialect.aliases.items()))} if dialect.renames else {}
    for name, option in dialect.options.items():
        if not draft.given(name):
            _compare(result, draft, name, shown.get(name, name), option, tree)
    return result


def spellings(dialect: Dialect) -> dict[str, str]:
    """Every name that a file of this dialect may use, with the table's name of that option."""
    renamed = set(dialect.aliases.values()) if dialect.renames else set()
    return {name: name for name in dialect.options if name not in renamed} | dict(dialect.aliases)


def _obey(draft: Draft, rule: Rule) -> None:
    try:
        rule(draft)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"a value of the recipe is not of the kind that its option has ({rule.__module__.rpartition('.')[2]}."
            f"{rule.__name__}): {type(error).__name__}: {error}"
        ) from error


def _apply(draft: Draft, name: str, option: Option) -> None:
    """Refusals, and options that are ours one to one."""
    value = draft.value(name)
    if option.moot is not None:
        draft.moot(name, option.moot)
    elif option.refusal is not None:
        if value is not None and not any(value == n and type(value) is type(n) for n in option.neutral):
            draft.refuse(name, option.refusal)
    elif option.convert is not None and value is not None:
        (key,) = option.keys
        try:
            draft.write(key, option.convert(value))
        except NotSupportedError as error:
            draft.refuse(name, str(error))
            if error.instead is not ABSENT:
                draft.write(key, error.instead)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name}={value!r}: {error}") from error


def _written(keys: Sequence[str], tree: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: ours.look_up(key, tree) for key in keys}
    return {key: value for key, value in found.items() if value is not ours.MISSING}


def _account(
    result: Translation, draft: Draft, name: str, shown: str, option: Option, value: Any, tree: Mapping[str, Any]
) -> None:
    if name in draft.refusals:
        result.unsupported.append(Left(shown, value, draft.refusals[name]))
    elif name in draft.moot_because:
        result.moot.append(Left(shown, value, draft.moot_because[name]))
    elif value is None:
        result.taken.append(Taken(shown, value, {}, "null: left to its default"))
    else:
        written = _written((*option.keys, *option.also), tree)
        result.taken.append(Taken(shown, value, written, draft.notes.get(name, "")))


def _compare(result: Translation, draft: Draft, name: str, shown: str, option: Option, tree: Mapping[str, Any]) -> None:
    """List the option when what its default makes is not what ours makes."""
    theirs = draft.default(name)
    is_refused = name in draft.refusals
    if isinstance(theirs, Mark) or (name in draft.moot_because and not is_refused):
        return
    if theirs is None and name not in draft.notes and not is_refused:
        return  # unset: what others decide is listed with them
    written = _written(option.keys, tree)
    here = {key: ours.look_up(key, ours.defaults()) for key in written}
    changed = [key for key, value in written.items() if here[key] != (list(value) if type(value) is tuple else value)]
    if changed or is_refused:
        old = {key: None if here[key] is ours.MISSING else here[key] for key in changed}
        new = {key: written[key] for key in changed}
        note = draft.refusals[name] if is_refused else draft.notes.get(name, "")
        result.defaults.append(Changed(shown, theirs, old, new, note, is_supported=not is_refused))
