"""Tokens and keys: always in the environment, named by an option, never in a configuration that is written down."""

from __future__ import annotations

import os

from rlsys.errors import ConfigError


def secret(variable: str, option: str) -> str:
    """What the environment variable of that name holds; empty where none is named.

    Raises ConfigError, with the `option` that named it, when the environment has no such variable.
    """
    value = os.environ.get(variable, "") if variable else ""
    if variable and not value:
        raise ConfigError(f"{option}={variable}: the environment has no such variable")
    return value
