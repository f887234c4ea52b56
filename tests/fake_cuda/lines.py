"""The statements and expressions of rlsys that only a run on GPUs enters, found in the source.

A piece is such a statement, or such a part of an expression (`a` in `a if on_gpu else b`). Found are: branches whose
test names a GPU or a channel between GPUs; what follows a test that returns on CPUs; definitions whose names say so;
and definitions that nothing but pieces refers to.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCOPE = ("models", "learner", "weights", "reference", "scoring", "rollout/engine", "rewards/reward_model.py")
GPU, CPU = {"cuda", "nccl", "ipc"}, {"cpu", "gloo"}
NAMED = re.compile(r"(?i)cuda|nccl|ipc|(^|_)gpu(_|$)")
ENDS = (ast.Return, ast.Raise, ast.Continue, ast.Break)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Piece:
    """A statement or a part of an expression; `node` is its place in a parsed module."""

    file: str
    owner: str  # the function that it stands in, with its class
    text: str  # its first line
    number: int  # among those of its function with the same text
    node: ast.stmt | ast.expr = field(compare=False, repr=False)

    @property
    def key(self) -> str:
        """Return the piece's name, which stays when the file's lines move."""
        return f"{self.file} {self.owner}: {self.text}" + (f" ({self.number})" if self.number > 1 else "")


def implies(test: ast.expr, value: bool) -> bool | None:
    """Return whether a test with this value means a GPU (True), means a CPU (False), or leaves it open (None)."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return implies(operand, not value)
        case ast.BoolOp(op=op, values=values):
            # `a and b` is true where both are; `a or b` is false where both are.
            found = {implies(part, value) for part in values}
            if isinstance(op, ast.And) is value:
                return True if True in found else False if False in found else None
            return found.pop() if len(found) == 1 else None
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _compared(left, op, right, value)
        case ast.Name() | ast.Attribute():
            return value if NAMED.search(ast.unparse(test).rpartition(".")[2]) else None
        case ast.Call(func=ast.Attribute(attr="is_available")) if "cuda" in ast.unparse(test):
            return value
    return None


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr, value: bool) -> bool | None:
    if isinstance(op, ast.Is | ast.IsNot):  # weights in 4 bits are for GPUs
        is_null = isinstance(op, ast.Is) is value
        return True if ast.unparse(left).endswith("quantize_base") and not is_null else None
    words = {node.value for node in ast.walk(right) if isinstance(node, ast.Constant)}
    if isinstance(left, ast.Call) or not isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn):
        return None
    is_equal = isinstance(op, ast.Eq | ast.In) is value
    if words and words <= GPU:
        return True if is_equal else False if words == {"cuda"} else None
    if words and words <= CPU:
        return not is_equal
    return None


@dataclass
class Module:
    """One parsed file, with what is known to run on GPUs only."""

    file: str
    tree: ast.Module
    text: str
    references: list[_Reference]
    pieces: list[Piece] = field(default_factory=list)
    definitions: list[Definition] = field(default_factory=list)  # those that only GPUs reach

    @classmethod
    def parse(cls, file: str, text: str) -> Module:
        """Parse a file's text."""
        tree = ast.parse(text)
        return cls(file, tree, text, list(_references(tree, ())))

    def search(self, known: set[str]) -> None:
        """Find the pieces, given the names of the definitions that only GPUs reach."""
        self.pieces, self.definitions = [], []
        self._block(self.tree.body, "", known, is_gpu=False)

    def _block(self, body: Sequence[ast.stmt], owner: str, known: set[str], *, is_gpu: bool) -> None:
        for statement in body:
            if isinstance(statement, Definition):
                self._definition(statement, owner, known, is_gpu=is_gpu)
                continue
            if is_gpu and not _is_text(statement):
                self._add(statement, owner)
            self._expressions(statement, owner)
            is_gpu = self._inside(statement, owner, known, is_gpu=is_gpu)

    def _definition(self, node: Definition, owner: str, known: set[str], *, is_gpu: bool) -> None:
        is_gpu = is_gpu or node.name in known
        if is_gpu:
            self.definitions.append(node)
        # What stands in a class outside of its functions runs with the import.
        body = [part for part in node.body if isinstance(node, FUNCTIONS) or isinstance(part, Definition)]
        self._block(body, f"{owner}.{node.name}".lstrip("."), known, is_gpu=is_gpu)

    def _inside(self, statement: ast.stmt, owner: str, known: set[str], *, is_gpu: bool) -> bool:
        """Search the statement's blocks; return whether only GPUs reach what follows it."""
        if isinstance(statement, ast.If):
            true, false = (implies(statement.test, value) is True for value in (True, False))
            self._block(statement.body, owner, known, is_gpu=is_gpu or true)
            self._block(statement.orelse, owner, known, is_gpu=is_gpu or false)
            is_left = isinstance(statement.body[-1], ENDS) and false
            return is_gpu or is_left or (bool(statement.orelse) and isinstance(statement.orelse[-1], ENDS) and true)
        for name in ("body", "orelse", "finalbody"):
            self._block(getattr(statement, name, []), owner, known, is_gpu=is_gpu)
        for handler in getattr(statement, "handlers", []):
            self._block(handler.body, owner, known, is_gpu=is_gpu)
        return is_gpu

    def _expressions(self, statement: ast.stmt, owner: str) -> None:
        for node in _own_expressions(statement):
            if isinstance(node, ast.IfExp):
                arms = ((node.body, True), (node.orelse, False))
                found = [arm for arm, value in arms if implies(node.test, value) is True]
            elif isinstance(node, ast.BoolOp):
                going_on = isinstance(node.op, ast.And)
                means = [implies(part, going_on) is True for part in node.values]
                found = node.values[means.index(True) + 1 :] if True in means else []
            else:
                continue
            for expression in found:
                self._add(expression, owner)

    def _add(self, node: ast.stmt | ast.expr, owner: str) -> None:
        text = (ast.get_source_segment(self.text, node) or "").partition("\n")[0]
        same = [piece for piece in self.pieces if piece.owner == owner and piece.text == text]
        self.pieces.append(Piece(self.file, owner, text, len(same) + 1, node))


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _own_expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield every expression of a statement, without those of the statements inside it."""
    waiting: list[ast.AST] = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.stmt | ast.ExceptHandler):
            yield node
            waiting += ast.iter_child_nodes(node)


@cache
def gpu_pieces() -> Mapping[str, Sequence[Piece]]:
    """Return the pieces of every file in SCOPE that has some, by file."""
    paths = sorted((ROOT / "rlsys").rglob("*.py"))
    modules = [Module.parse(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths]
    in_scope = [module for module in modules if module.file.removeprefix("rlsys/").startswith(SCOPE)]
    return search(in_scope, modules)


def search(in_scope: Sequence[Module], modules: Sequence[Module]) -> dict[str, Sequence[Piece]]:
    """Search some of all modules, until no more definition turns out to be reached from pieces alone."""
    candidates = [found for module in in_scope for found in _candidates(module)]
    known = {found.name for found in candidates if NAMED.search(found.name)}
    while True:
        for module in in_scope:
            module.search(known)
        more = _reached(candidates, modules) - known
        if not more:
            return {module.file: module.pieces for module in in_scope if module.pieces}
        known |= more


@dataclass(frozen=True)
class _Candidate:
    name: str
    file: str
    is_method: bool

    def means(self, reference: _Reference, file: str) -> bool:
        """Return whether a name in a file may be this definition's."""
        if isinstance(reference.node, ast.Name):
            return not self.is_method and (file == self.file or not self.name.startswith("_"))
        return self.is_method or (isinstance(reference.node, ast.Attribute) and not self.name.startswith("_"))


@dataclass(frozen=True)
class _Reference:
    """A name, an attribute, or a text (methods are called by their names through Ray), and where it stands."""

    name: str
    node: ast.expr
    owners: tuple[str, ...]  # the definitions around it


def _candidates(module: Module) -> Iterator[_Candidate]:
    for parent in ast.walk(module.tree):
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, Definition):
                yield _Candidate(node.name, module.file, isinstance(parent, ast.ClassDef))


def _reached(candidates: Sequence[_Candidate], modules: Sequence[Module]) -> set[str]:
    """Return the names that occur in pieces, and nowhere else but in the definition itself."""
    by_name: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        by_name.setdefault(candidate.name, []).append(candidate)
    inside: set[str] = set()
    outside: set[str] = set()
    for module in modules:
        nodes = [*(piece.node for piece in module.pieces), *module.definitions]
        on_gpu = {id(part) for node in nodes for part in ast.walk(node)}
        for reference in module.references:
            name, node = reference.name, reference.node
            if name in reference.owners or not any(
                each.means(reference, module.file) for each in by_name.get(name, ())
            ):
                continue
            if id(node) in on_gpu:
                inside.add(name)
            elif not isinstance(node, ast.Constant):  # most texts outside are no names
                outside.add(name)
    return inside - outside


def _references(node: ast.AST, owners: tuple[str, ...]) -> Iterator[_Reference]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                yield _Reference(name, child, owners)
        yield from _references(child, (*owners, child.name) if isinstance(child, Definition) else owners)
