"""Names of files in options: `~` expanded, and made independent of the working directory.

Workers run in other folders, and a run's `config.yaml` is read again from anywhere. So every file that an option names
is made absolute before the run starts. Names that only look like files (hub ids, registered functions) stay.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlsys.errors import ConfigError


def expand(path: str | Path) -> Path:
    """Return a path with `~` replaced by the home folder. Raise ConfigError when nobody knows that folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"the path '{path}' begins with ~, but {str(error).lower()}: write the whole path") from error


def nearest_existing(path: Path) -> Path:
    """Return the path itself where something is there, else the nearest folder above that exists."""
    return next(one for one in (path, *path.resolve().parents) if one.exists())


def is_file(path: str) -> bool:
    """Return whether a text is the name of an existing file; a long text, or one with a zero byte, is none."""
    return os.path.isfile(os.path.expanduser(path))


def read_text(path: str | Path, key: str) -> str:
    """Return a UTF-8 file's text. Raise ConfigError, which names the option `key`, for one that cannot be read."""
    try:
        return expand(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {path} is not UTF-8 (byte {error.start + 1}): save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from error


def absolute(path: str | Path) -> str:
    """Return a path that does not depend on the working directory."""
    return str(expand(path).resolve())


def absolute_function(name: str) -> str:
    """Make the file of `path.py:function` absolute; return any other name as it is."""
    path, colon, function = name.rpartition(":")
    return f"{absolute(path)}{colon}{function}" if path.endswith(".py") else name


def absolute_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """Make the function's file absolute in `{name: path.py:function, option: value}`."""
    return {**node, "name": absolute_function(node["name"])} if isinstance(node.get("name"), str) else dict(node)


def absolute_if_there(value: Any) -> Any:
    """Make the names of existing files, folders and functions in files absolute, in lists and mappings too.

    Any other value, a text or a hub id for example, is returned as it is.
    """
    if isinstance(value, Mapping):
        return {key: absolute_if_there(one) for key, one in value.items()}
    if isinstance(value, list):
        return [absolute_if_there(one) for one in value]
    if not isinstance(value, str):
        return value
    if _is_there(value):
        return absolute(value)
    return absolute_function(value) if _is_there(value.rpartition(":")[0]) else value


def _is_there(path: str) -> bool:
    # os.path, not Path: it takes a text that is too long for a name as one that does not exist.
    return bool(path) and os.path.exists(os.path.expanduser(path))
