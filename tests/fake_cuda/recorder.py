"""A record of the GPU's pieces that a run's processes enter: each piece reports itself when it is reached.

The pieces' modules are compiled with a call in front of every piece. A tracing function would see neither the threads
of autograd nor other processes, and would slow down everything else.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PIECES, ENTERED = "RLSYS_TEST_PIECES", "RLSYS_TEST_ENTERED"  # environment: the two files
REPORT = "__entered__"  # the name of the call in a module
Keys = Mapping[tuple[Any, ...], str]  # of a file's pieces, by their places

_written: set[str] = set()


def write_pieces(pieces: Mapping[str, Sequence[Any]], file: Path) -> None:
    """Write what `start` reads: the places and keys of each file's pieces."""
    plain = {name: [(*place(piece.node), piece.key) for piece in found] for name, found in pieces.items()}
    file.write_text(json.dumps(plain), encoding="utf-8")


def start() -> None:
    """Let modules that this process imports from now on report."""
    plain = json.loads(Path(os.environ[PIECES]).read_text(encoding="utf-8"))
    sys.meta_path.insert(0, _Finder({name: {tuple(row[:-1]): row[-1] for row in rows} for name, rows in plain.items()}))


def _enter(key: str) -> None:
    """Write the key of a piece, once per process; a process may end at any moment."""
    if key not in _written:
        _written.add(key)
        with open(os.environ[ENTERED], "a", encoding="utf-8") as file:
            file.write(f"{key}\n")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, keys: Mapping[str, Keys]) -> None:
        self._keys = keys

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module with pieces, with a loader that lets them report."""
        keys = self._keys.get(f"{name.replace('.', '/')}.py")
        spec = None if keys is None else importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None and keys is not None:
            spec.loader = _Loader(name, spec.origin, keys)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, keys: Keys) -> None:
        super().__init__(name, path)
        self._keys = keys

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source with its reports; Python's cache of compiled files is left out."""
        return compile(reporting(Path(self.path).read_text(encoding="utf-8"), self._keys), self.path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, which finds the call among its names."""
        setattr(module, REPORT, _enter)
        super().exec_module(module)


def reporting(text: str, keys: Keys) -> ast.Module:
    """Return a module whose pieces report their keys. Places in the file stay, for tracebacks."""
    tree: ast.Module = _Reporting(keys).visit(ast.parse(text))
    return ast.fix_missing_locations(tree)


def place(node: Any) -> tuple[Any, ...]:
    """Return what tells a statement or expression from all others of its file."""
    return type(node).__name__, node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


class _Reporting(ast.NodeTransformer):
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def visit(self, node: ast.AST) -> Any:
        """Put the report in front of a piece."""
        key = self._keys.get(place(node)) if isinstance(node, ast.stmt | ast.expr) else None
        found: Any = self.generic_visit(node)
        if key is None:
            return found
        call = ast.Call(ast.Name(REPORT, ast.Load()), [ast.Constant(key)], [])
        if isinstance(node, ast.stmt):
            return [ast.copy_location(ast.Expr(call), node), found]
        # `[report(), value][1]`, because an expression has no line in front of it.
        both = ast.List([call, found], ast.Load())
        return ast.copy_location(ast.Subscript(both, ast.Constant(1), ast.Load()), node)
