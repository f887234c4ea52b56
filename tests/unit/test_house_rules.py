"""The rules that keep the code readable: layers, sizes, one folder per job, nothing written twice.

CONTRIBUTING.md says why. A rule that stands in the way is discussed there first, not loosened here.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rlsys"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_NESTING = 3
MAX_POSITIONAL = 7
MAX_LOOSE_MODULES = 6
# So many significant lines in a row that stand in two places are one piece of code written twice.
DUPLICATE_LINES = 8
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


def depth(node: ast.AST, at: int = 0) -> int:
    """Return how deeply blocks are nested; an `elif` is no deeper than its `if`."""
    deepest = at
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef | ast.Lambda):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child, at + (isinstance(child, BLOCKS) and not is_elif)))
    return deepest


def test_nobody_imports_upward() -> None:
    """The layers are in pyproject.toml, under `importlinter`."""
    # In a process of its own: import-linter switches off the loggers of every module that is loaded.
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    found = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_top_level_shows_the_architecture() -> None:
    loose = sorted(path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
    assert len(loose) <= MAX_LOOSE_MODULES, loose


def test_every_folder_says_what_belongs_there() -> None:
    folders = [folder for folder, _, names in os.walk(PACKAGE) if any(name.endswith(".py") for name in names)]
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((Path(folder) / "__init__.py").read_text(encoding="utf-8")))
        assert docstring, f"{folder}/__init__.py has no docstring"


def test_unit_tests_lie_where_their_code_lies() -> None:
    """Each folder of the package has its folder of tests, and no other exists; `recipes` holds files of tests."""
    packages = {folder.relative_to(PACKAGE) for folder in PACKAGE.rglob("*") if (folder / "__init__.py").is_file()}
    tests = ROOT / "tests" / "unit"
    assert {folder.relative_to(tests) for folder in tests.rglob("*") if list(folder.glob("*.py"))} == packages


def test_files_are_small() -> None:
    large = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: lines for name, lines in large.items() if lines > MAX_FILE_LINES} == {}


def test_no_folder_of_tests_is_left_out(pytestconfig: pytest.Config) -> None:
    """Pytest's own list of folders that it does not enter has the names of some of ours."""
    left_out = pytestconfig.getini("norecursedirs")
    folders = [path for path in (ROOT / "tests").rglob("[!.]*") if path.is_dir()]
    assert len(folders) > 20
    assert [str(path) for path in folders if any(fnmatch(path.name, pattern) for pattern in left_out)] == []


def test_functions_are_small_and_flat() -> None:
    broken = []
    for where, node in functions():
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        positional = len(node.args.posonlyargs) + len(node.args.args)
        if lines > MAX_FUNCTION_LINES:
            broken.append(f"{where}: {lines} lines")
        if depth(node) > MAX_NESTING:
            broken.append(f"{where}: nested {depth(node)} deep")
        if positional > MAX_POSITIONAL + 1 and node.name != "__init__":  # self not counted
            broken.append(f"{where}: {positional} positional parameters")
    assert broken == []


def significant_lines(file: Path) -> list[tuple[int, str]]:
    """Return line numbers and text, without what is alike everywhere: imports, docstrings, comments, brackets."""
    text = file.read_text(encoding="utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (is_text or isinstance(node, ast.Import | ast.ImportFrom)):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if number not in skipped)
    return [(number, line) for number, line in lines if any(map(str.isalnum, line)) and not line.startswith("#")]


def test_nothing_is_written_twice() -> None:
    seen: dict[tuple[str, ...], str] = {}
    twice = []
    for file in FILES:
        lines = significant_lines(file)
        for start in range(len(lines) - DUPLICATE_LINES + 1):
            window = tuple(line for _, line in lines[start : start + DUPLICATE_LINES])
            here = f"{file.relative_to(ROOT)}:{lines[start][0]}"
            if window in seen:
                twice.append(f"{here} stands at {seen[window]} too")
            seen.setdefault(window, here)
    assert twice == []
