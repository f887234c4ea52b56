"""A record of the GPU's pieces that a process enters: each reports itself when it is reached.

The pieces' modules are compiled with a call in front of every piece. A tracing function would not see the threads of
autograd, and would slow down everything else.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tests.fake_cuda.lines import ROOT, Piece, gpu_pieces

REPORT = "__entered__"  # the name of the call in a module


class Recorder(importlib.abc.MetaPathFinder):
    """The keys of the pieces that were entered since `start`, which comes before any module of rlsys."""

    def __init__(self) -> None:
        self.entered: set[str] = set()
        self._pieces = gpu_pieces()

    def start(self) -> None:
        """Let modules that are imported from now on report."""
        loaded = [name for name in sys.modules if name.startswith("rlsys.")]
        assert not loaded, f"imported before the record began: {', '.join(loaded[:3])}"
        sys.meta_path.insert(0, self)

    def write(self, file: Path) -> None:
        """Write the keys, sorted."""
        file.write_text(json.dumps(sorted(self.entered)), encoding="utf-8")

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        """Return a module's spec with a loader that reports, if it has pieces."""
        if not name.startswith("rlsys."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.origin is None:
            return None
        pieces = self._pieces.get(str(Path(spec.origin).relative_to(ROOT)))
        if pieces:
            spec.loader = _Loader(name, spec.origin, pieces, self.entered)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, pieces: Sequence[Piece], entered: set[str]) -> None:
        super().__init__(name, path)
        self._pieces, self._entered = pieces, entered

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source with its reports; Python's cache of compiled files is left out."""
        return compile(reporting(Path(self.path).read_text(encoding="utf-8"), self._pieces), self.path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, which finds the call among its names."""
        setattr(module, REPORT, self._entered.add)
        super().exec_module(module)


def reporting(text: str, pieces: Sequence[Piece]) -> ast.Module:
    """Return a module whose pieces report their keys. Places in the file stay, for tracebacks."""
    tree = _Reporting({_place(piece.node): piece.key for piece in pieces}).visit(ast.parse(text))
    return ast.fix_missing_locations(tree)


def _place(node: Any) -> tuple[Any, ...]:
    return type(node), node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


class _Reporting(ast.NodeTransformer):
    def __init__(self, keys: Mapping[tuple[Any, ...], str]) -> None:
        self._keys = keys

    def visit(self, node: ast.AST) -> Any:
        """Put the report in front of a piece."""
        key = self._keys.get(_place(node)) if isinstance(node, ast.stmt | ast.expr) else None
        found = self.generic_visit(node)
        if key is None:
            return found
        call = ast.Call(ast.Name(REPORT, ast.Load()), [ast.Constant(key)], [])
        if isinstance(node, ast.stmt):
            return [ast.copy_location(ast.Expr(call), node), found]
        # `[report(), value][1]`, because an expression has no line in front of it.
        both = ast.List([call, found], ast.Load())
        return ast.copy_location(ast.Subscript(both, ast.Constant(1), ast.Load()), node)
