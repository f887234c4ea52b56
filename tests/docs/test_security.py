"""Every promise of docs/security.md names a test, and every test that it names exists."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import ROOT

ROWS = re.findall(r"^\| (?!promise|-)(.+) \| (.+) \|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)
NAME = re.compile(r"`([\w/.]*)::(\w+)`")


@pytest.mark.parametrize(("promise", "tests"), ROWS, ids=[promise[:40] for promise, _ in ROWS])
def test_a_promise_names_tests_that_exist(promise: str, tests: str) -> None:
    named = NAME.findall(tests)
    assert len(named) == tests.count("`") / 2 > 0
    file = ""
    for path, test in named:
        file = path or file  # `::test_x` is of the file before
        assert test in _functions(file), f"{file} has no {test}: {promise}"


def _functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_page_has_promises() -> None:
    assert len(ROWS) > 12
