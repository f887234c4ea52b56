"""Templates: an option holds the text, or the name of a file with it."""

from __future__ import annotations

from rlsys.config.paths import absolute, expand
from rlsys.errors import ConfigError

SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt", ".md")


def text_or_file(value: str, key: str) -> str:
    """Return `value`, or the content of the file that it names. Raise ConfigError when there is no such file."""
    if not _is_file_name(value):
        return value
    path = expand(value)
    if not path.is_file():
        raise ConfigError(f"{key}: no such file: {path.resolve()}")
    return path.read_text(encoding="utf-8")


def absolute_template(value: str) -> str:
    """Return `value`; when it names a file, return the file's absolute name."""
    return absolute(value) if _is_file_name(value) else value


def _is_file_name(value: str) -> bool:
    """Return whether the value looks like a file of a known suffix; a template has braces or several lines."""
    return not ("{" in value or "\n" in value) and value.endswith(SUFFIXES)
