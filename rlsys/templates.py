"""Templates that an option holds, or names the file of."""

from __future__ import annotations

from pathlib import Path

from rlsys.errors import ConfigError

SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt", ".md")


def text_or_file(value: str, key: str) -> str:
    """`value`, or what the file of that name holds. Raises ConfigError for a file that is not there."""
    if "{" in value or "\n" in value or not value.endswith(SUFFIXES):
        return value
    path = Path(value).expanduser()
    if not path.is_file():
        raise ConfigError(f"{key}: no such file: {path.resolve()}")
    return path.read_text(encoding="utf-8")
