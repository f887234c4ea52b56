"""Overrides as arguments of a command, with their completion in the shell."""

from __future__ import annotations

import argparse
from typing import Any

from rlsys.config.option import options
from rlsys.config.overrides import groups, presets
from rlsys.config.schema import Config


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Declare `key=value ...`; the command finds them in `overrides`."""
    overrides: Any = parser.add_argument("overrides", nargs="*", metavar="key=value", help="options of the run")
    overrides.completer = complete_override


def complete_override(prefix: str, **_: object) -> list[str]:
    """Return the completions of an override that begins with `prefix`: keys, then presets, choices or the default."""
    key, equals, _value = prefix.partition("=")
    if not equals:
        keys = [f"{group}=" for group in groups() if presets(group)]
        return [one for one in (*keys, *(f"{option.key}=" for option in options(Config()))) if one.startswith(prefix)]
    return [f"{key}={value}" for value in _values(key) if f"{key}={value}".startswith(prefix)]


def _values(key: str) -> list[str]:
    if key in groups():
        return presets(key)
    option = next((option for option in options(Config()) if option.key == key), None)
    if option is None:
        return []
    if option.type == "bool":
        return ["true", "false"]
    if option.rule.choices:
        return [str(choice) for choice in option.rule.choices]
    return [str(option.value)] if isinstance(option.value, int | float) else []
