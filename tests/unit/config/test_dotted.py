"""Nested mappings addressed by dotted keys."""

from __future__ import annotations

import pytest

from rlsys.config.dotted import flatten, look_up, nested, put


def test_flatten_and_nested_are_inverse() -> None:
    tree = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None, "empty": {}}
    flat = {"a.b": 1, "a.c.d": [1, 2], "e": None, "empty": {}}
    assert flatten(tree) == flat
    assert nested(flat) == tree


def test_flatten_keeps_the_named_mappings_whole() -> None:
    tree = {"a": {"b": 1, "kwargs": {"x": 1}}, "kwargs": {"y": 2}, "empty": {}}
    assert flatten(tree, {"kwargs", "a.kwargs"}) == {
        "a.b": 1,
        "a.kwargs": {"x": 1},
        "kwargs": {"y": 2},
        "empty": {},
    }


def test_put_replaces_a_value_and_refuses_to_go_below_one() -> None:
    tree = {"a": {"b": 1}}
    put(tree, "a.b", 2)
    put(tree, "c.d.e", 3)
    assert tree == {"a": {"b": 2}, "c": {"d": {"e": 3}}}
    with pytest.raises(ValueError, match=r"'a\.b\.c' cannot be set: 'b' is already the value 2"):
        put(tree, "a.b.c", 1)


def test_look_up_returns_the_default_for_a_missing_key() -> None:
    tree = {"a": {"b": None}}
    assert look_up(tree, "a.b", "default") is None
    assert look_up(tree, "a.c", "default") == "default"
    assert look_up(tree, "a.b.c", "default") == "default"
