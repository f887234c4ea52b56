"""Tokens and keys: read from the environment variable that an option names, never from a configuration on disk."""

from __future__ import annotations

import os

from rlsys.errors import ConfigError


def secret(variable: str, option: str) -> str:
    """Return the value of an environment variable, or "" when `variable` is empty.

    Raises ConfigError, which names the `option` that asked for it, when the environment has no such variable.
    """
    value = os.environ.get(variable, "") if variable else ""
    if variable and not value:
        raise ConfigError(f"{option}={variable}: the environment has no such variable: set it, or name another")
    return value
