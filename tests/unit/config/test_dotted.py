"""Nested mappings and dotted keys."""

from __future__ import annotations

from rlsys.config.dotted import flatten, nested


def test_flatten_keeps_lists_and_empty_mappings_as_leaves() -> None:
    tree = {"a": {"b": 1, "c": {}}, "d": [{"name": "x"}], "e": None}
    assert flatten(tree) == {"a.b": 1, "a.c": {}, "d": [{"name": "x"}], "e": None}


def test_nested_is_the_inverse() -> None:
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": "text"}
    assert nested(flatten(tree)) == tree
    assert list(nested({"b.x": 1, "a": 2, "b.y": 3})) == ["b", "a"]
