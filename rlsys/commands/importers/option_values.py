"""Values as the other project's parser makes them: by the kind of the option's default, which a file's text lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlsys.commands.importers.options import ByVersion, TableRow
from rlsys.commands.importers.recipe import NoDefault
from rlsys.commands.importers.shell_variables import Unread
from rlsys.errors import ConfigError

WORDS = {"yes": True, "on": True, "no": False, "off": False}  # switches of YAML 1.1; of argparse with those below
SWITCHES = WORDS | {"true": True, "t": True, "y": True, "1": True, "false": False, "f": False, "n": False, "0": False}


def typed_value(option: str, value: Any, row: TableRow) -> Any:
    """Return a value as its option takes it: `no` is a word to an option of words, and false to any other.

    Raises ConfigError for a value that cannot be one of the option's, and for one that the script does not make known.
    """
    _check_known(option, value, row)
    kinds = {type(default) for default in _defaults(row)}
    if row.words and isinstance(value, str):
        return value if value in row.words else SWITCHES.get(value.lower(), value)
    if kinds == {bool}:
        return _switch(option, value)
    if str in kinds and isinstance(value, str):
        return value
    if kinds and kinds <= {int, float} and not row.ignored:
        return _number(option, value)
    return _without_words(value)


def _defaults(row: TableRow) -> list[Any]:
    found = row.default.since.values() if isinstance(row.default, ByVersion) else [row.default]
    return [value for value in found if value is not None and not isinstance(value, NoDefault)]


def _check_known(option: str, value: Any, row: TableRow) -> None:
    parts = value if isinstance(value, list) else [value]
    for part in parts if not row.ignored else ():
        if isinstance(part, Unread):
            raise ConfigError(f"'{option}' is {str(part)!r}: {part.reason}")


def _switch(option: str, value: Any) -> Any:
    found = SWITCHES.get(str(value).lower()) if isinstance(value, str | int) else value
    if value is None or isinstance(found, bool):
        return found
    raise ConfigError(f"{option}={value!r}: the option is a switch, true or false")


def _number(option: str, value: Any) -> Any:
    if isinstance(value, bool):
        raise ConfigError(f"{option}={value!r}: the option is a number")
    if not isinstance(value, str):
        return value
    for parse in (int, float):
        try:
            return parse(value)
        except ValueError:
            continue
    return value  # a word that the table knows, or an error of its conversion


def _without_words(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_words(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_words(part) for part in value]
    return WORDS.get(value.lower(), value) if isinstance(value, str) else value
