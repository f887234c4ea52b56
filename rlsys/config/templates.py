"""Templates that an option holds, or names the file of."""

from __future__ import annotations

from pathlib import Path

from rlsys.errors import ConfigError

SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt", ".md")


def text_or_file(value: str, key: str) -> str:
    """`value`, or what the file of that name holds. Raises ConfigError for a file that is not there."""
    if not _is_file_name(value):
        return value
    path = Path(value).expanduser()
    if not path.is_file():
        raise ConfigError(f"{key}: no such file: {path.resolve()}")
    return path.read_text(encoding="utf-8")


def absolute_file(value: str) -> str:
    """`value`, or the file's name so that it does not depend on a working directory."""
    return str(Path(value).expanduser().resolve()) if _is_file_name(value) else value


def _is_file_name(value: str) -> bool:
    return not ("{" in value or "\n" in value) and value.endswith(SUFFIXES)
