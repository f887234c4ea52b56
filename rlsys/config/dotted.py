"""Nested mappings addressed by dotted keys: `train.num_steps` for `{"train": {"num_steps": ...}}`.

For plain mappings of plain values. It knows neither the schema nor Hydra.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], leaves: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of a nested mapping by dotted key.

    Empty mappings and the mappings at the keys in `leaves` count as values and stay whole.
    """
    flat: dict[str, Any] = {}

    def visit(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if isinstance(value, Mapping) and value and key not in leaves:
                visit(value, f"{key}.")
            else:
                flat[key] = value

    visit(tree, "")
    return flat


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key and make the mappings above it where there are none.

    Raises ValueError when a value that is not a mapping stands above the key.
    """
    *above, last = key.split(".")
    node: Any = tree
    for name in above:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ValueError(f"'{key}' cannot be set: '{name}' is already the value {node!r}")
    node[last] = value


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested mapping of dotted keys, in the order given."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        put(tree, key, value)
    return tree


def look_up(tree: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return the value at a dotted key of a nested mapping, or `default` when there is none."""
    node: Any = tree
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return default
        node = node[name]
    return node
