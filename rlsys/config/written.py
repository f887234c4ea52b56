"""The form of a configuration that may be written to disk, to a tracker or to a model card.

Text that came from the environment (`${oc.env:PW}`) is written as it was asked for, not as its value, which may be a
password. `FromEnvironment` carries the request along with the value, from composing to writing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

# A `${` that OmegaConf would read as the start of an interpolation, with the backslashes before it.
INTERPOLATION = re.compile(r"(\\*)\$\{")
ENVIRONMENT = "${oc.env:"
# An absolute name of a file or folder, perhaps with the `:function` of a `path.py:function`.
ABSOLUTE = re.compile(r"~?/(?:[\w.@+=, -]+/)*(?P<name>[\w.@+=, -]+(?:\.py:\w+)?)/?")


class FromEnvironment(str):
    """Text that was made from environment variables; `source` is the text before, as `${oc.env:PW}`."""

    source: str


def remember_environment(config: Any, unresolved: Any) -> Any:
    """Return a configuration in which every text that was made from the environment is a `FromEnvironment`.

    Args:
        config: the resolved configuration: dataclasses, mappings, lists and values.
        unresolved: the same as plain containers, with interpolations as they were written.
    """
    values: set[str] = set()

    def collect(text: str, source: Any) -> str:
        if text and ENVIRONMENT in str(source):
            values.add(text)
        return text

    def mark(text: str, source: Any) -> str:
        # An option may also take such a value from another option, as `${model.path}`.
        if not INTERPOLATION.search(str(source)) or not any(value in text for value in values):
            return text
        marked = FromEnvironment(text)
        marked.source = str(source)
        return marked

    _map_texts(config, unresolved, collect)
    return _map_texts(config, unresolved, mark) if values else config


def as_written(node: Any) -> Any:
    """Return a configuration, or a part of it, with every text as OmegaConf reads it back to the same value."""
    return _map_texts(node, None, _written)


def publishable(node: Any) -> Any:
    """Return `as_written` with absolute file names cut to their last part: their folders are those of this machine."""

    def cut(text: str, _: Any) -> str:
        found = ABSOLUTE.fullmatch(text)
        return found["name"] if found else text

    return _map_texts(as_written(node), None, cut)


def _written(text: str, _: Any) -> str:
    if isinstance(text, FromEnvironment):
        return text.source
    return INTERPOLATION.sub(lambda found: f"{found[1] * 2}\\${{", text)


def _map_texts(node: Any, beside: Any, change: Callable[[str, Any], str]) -> Any:
    """Return a copy of a tree with every text in it changed; `change` also gets what stands there in `beside`."""
    if isinstance(node, str):
        return change(node, beside)
    if isinstance(node, list | tuple):
        return type(node)(_map_texts(value, _at(beside, index), change) for index, value in enumerate(node))
    if isinstance(node, Mapping):
        return {key: _map_texts(value, _at(beside, key), change) for key, value in node.items()}
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        names = [field.name for field in dataclasses.fields(node)]
        changed = {name: _map_texts(getattr(node, name), _at(beside, name), change) for name in names}
        return dataclasses.replace(node, **changed)
    return node


def _at(tree: Any, key: Any) -> Any:
    if isinstance(tree, Mapping):
        return tree.get(key)
    return tree[key] if isinstance(tree, list) and key < len(tree) else None
