"""Tokens and keys: read from the environment variable that an option names, and kept out of what is written.

No configuration on disk holds one, nor does a message: messages end up in logs, rollouts and reports.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit, urlunsplit

from rlsys.config.written import shown
from rlsys.errors import ConfigError


def secret(variable: str, option: str) -> str:
    """Return the value of an environment variable, or "" when `variable` is empty.

    Raises ConfigError, which names the `option` that asked for it, when the environment has no such variable.
    """
    value = os.environ.get(variable, "") if variable else ""
    if variable and not value:
        raise ConfigError(f"{option}={variable}: the environment has no such variable: set it, or name another")
    return value


def without_secrets(url: str) -> str:
    """Return the scheme, host and port of a URL, for messages: its user, path and query may hold a password or key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def without_password(url: str) -> str:
    """Return a URL for messages, without its user, password and query, or as it was asked of the environment."""
    parts = urlsplit(shown(url))
    if parts.scheme and "${" not in parts.netloc:
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="")
    return urlunsplit(parts)
