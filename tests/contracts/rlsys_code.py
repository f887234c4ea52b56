"""What rlsys's own source says of vLLM: imports, calls, members, environment variables."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rlsys"

Name = tuple[str, str]  # a module of vLLM, and what is imported from it


@dataclass(frozen=True)
class Touched:
    """One place where code touches an imported name, or a member of it."""

    name: Name
    member: str | None
    where: str
    num_positional: int = 0
    keywords: frozenset[str] = field(default_factory=frozenset)


class SourceFile:
    """One file of rlsys."""

    def __init__(self, file: Path) -> None:
        self.path = str(file.relative_to(ROOT))
        self.tree = ast.parse(file.read_text(encoding="utf-8"))

    @cached_property
    def imports(self) -> dict[str, Name]:
        """What the file imports from vLLM, by the name that it has in the file."""
        found: dict[str, Name] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and _is_vllm(node.module or ""):
                found |= {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.asname or alias.name: (alias.name, "") for alias in node.names if _is_vllm(alias.name)}
        return found

    def touched(self) -> Iterator[Touched]:
        """Yield every call of an imported name and every member of one that is called, read or set."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and (named := self._named(node.func)) is not None:
                words = frozenset(keyword.arg for keyword in node.keywords if keyword.arg is not None)
                yield Touched(*named, self._where(node), len(node.args), words)
            elif isinstance(node, ast.Attribute) and (named := self._named(node)) is not None:
                yield Touched(*named, self._where(node))

    def members_of(self, *values: str) -> dict[str, str]:
        """Return the members that are used of expressions, such as `self._engine`, each with a place."""
        attributes = (node for node in ast.walk(self.tree) if isinstance(node, ast.Attribute))
        return {node.attr: self._where(node) for node in attributes if ast.unparse(node.value) in values}

    def words(self) -> Iterator[str]:
        """Yield every name and every text of the file."""
        for node in ast.walk(self.tree):
            for word in (getattr(node, name, None) for name in ("attr", "arg", "id", "name", "value")):
                if isinstance(word, str):
                    yield word

    def environment(self) -> set[str]:
        """Return vLLM's environment variables that texts of the file name."""
        texts = [node.value for node in ast.walk(self.tree) if isinstance(node, ast.Constant)]
        return {name for text in texts if isinstance(text, str) for name in re.findall(r"\bVLLM_[A-Z0-9_]+", text)}

    def _named(self, node: ast.expr) -> tuple[Name, str | None] | None:
        """Return the imported name that an expression is, and the member if it is a member of one."""
        if isinstance(node, ast.Name) and node.id in self.imports:
            return self.imports[node.id], None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in self.imports:
            return self.imports[node.value.id], node.attr
        return None

    def _where(self, node: ast.expr) -> str:
        return f"{self.path}:{node.lineno}"


@cache
def source_files() -> tuple[SourceFile, ...]:
    """Return every file of rlsys."""
    return tuple(SourceFile(file) for file in sorted(PACKAGE.rglob("*.py")))


def _is_vllm(module: str) -> bool:
    return module.split(".")[0] == "vllm"
