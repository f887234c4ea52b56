"""The definitions of an installed package, read from its source without importing it.

A wheel for GPUs cannot be imported where there are no CUDA libraries, and vLLM takes long to import where it can be.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """A function, class, assignment or module, and the module that defines it."""

    module: str
    node: ast.AST

    @property
    def text(self) -> str:
        """The definition in a uniform layout, without comments."""
        return ast.unparse(self.node)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function, or one field that a class is made with."""

    name: str
    is_required: bool
    is_positional: bool


class Package:
    """An installed or unpacked package, found by the folder that holds it."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._tree = cache(self._parse)
        self._names = cache(self._bound_names)

    def file(self, module: str) -> Path | None:
        """Return a module's file; None if there is none."""
        base = self._site.joinpath(*module.split("."))
        return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)

    def find(self, module: str, name: str) -> Definition | None:
        """Return what a name in a module is bound to, through any number of imports; None if it is not there."""
        if self.file(module) is None:
            return None
        bound = self._names(module).get(name)
        if isinstance(bound, tuple) and bound != (module, name):  # `from . import name` binds a submodule to its name
            source, original = bound
            return self.find(source, original) if original else Definition(source, self._tree(source))
        if isinstance(bound, ast.AST):
            return Definition(module, bound)
        submodule = f"{module}.{name}"
        return Definition(submodule, self._tree(submodule)) if self.file(submodule) is not None else None

    def member(self, definition: Definition, name: str) -> Definition | None:
        """Return a member of a class, of a module, or of a variable's annotated class; None if it has none."""
        if isinstance(definition.node, ast.Module):
            return self.find(definition.module, name)
        if isinstance(definition.node, ast.AnnAssign) and isinstance(definition.node.annotation, ast.Name):
            kind = self.find(definition.module, definition.node.annotation.id)
            return self.member(kind, name) if kind is not None else None
        return next((found for part in self._mro(definition) if (found := _own_member(part, name)) is not None), None)

    def parameters(self, definition: Definition) -> list[Parameter]:
        """Return what a function, or the constructor of a class, is called with, without `self` or `cls`."""
        node = definition.node
        if isinstance(node, ast.ClassDef):
            constructor = self.member(definition, "__init__")
            if constructor is None:
                return self._fields(definition)
            node = constructor.node
        assert isinstance(node, Function), f"{definition.text} cannot be called"
        return _parameters(node)

    def is_called(self, module: str, name: str) -> bool:
        """Return whether a module calls a function by a name of its own."""
        calls = (node for node in ast.walk(self._tree(module)) if isinstance(node, ast.Call))
        return any(isinstance(call.func, ast.Name) and call.func.id == name for call in calls)

    def _fields(self, definition: Definition) -> list[Parameter]:
        """Return the fields of a dataclass, or of a struct like one, those of its bases first."""
        fields: dict[str, Parameter] = {}
        for part in reversed(list(self._mro(definition))):
            assert isinstance(part.node, ast.ClassDef)
            for statement in part.node.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    name = statement.target.id
                    fields[name] = Parameter(name, is_required=statement.value is None, is_positional=True)
        return list(fields.values())

    def _mro(self, definition: Definition) -> Iterator[Definition]:
        """Yield a class and its bases, depth first; bases outside the package are left out."""
        if not isinstance(definition.node, ast.ClassDef):
            return
        yield definition
        for base in definition.node.bases:
            named = base.value if isinstance(base, ast.Subscript) else base  # Generic[T]
            found = self.find(definition.module, named.id) if isinstance(named, ast.Name) else None
            if found is not None:
                yield from self._mro(found)

    def _parse(self, module: str) -> ast.Module:
        file = self.file(module)
        assert file is not None, f"no module {module} in {self._site}"
        return ast.parse(file.read_text(encoding="utf-8"))

    def _bound_names(self, module: str) -> dict[str, ast.AST | tuple[str, str]]:
        """Return what a module's names are bound to: a node, or the module and the name that it is imported from."""
        file, names = self.file(module), dict[str, ast.AST | tuple[str, str]]()
        package = module if file is not None and file.name == "__init__.py" else module.rpartition(".")[0]
        for statement in _top_level(self._tree(module).body):
            if isinstance(statement, ast.ImportFrom):
                source = imported_from(statement, package)
                names |= {alias.asname or alias.name: (source, alias.name) for alias in statement.names}
            elif isinstance(statement, ast.Import):
                names |= {alias.asname: (alias.name, "") for alias in statement.names if alias.asname}
            else:
                names |= dict.fromkeys(_targets(statement), statement)
        return names


def imported_from(statement: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of the module that a statement in `package` imports from."""
    if not statement.level:
        return statement.module or ""
    parents = package.split(".")[: len(package.split(".")) - statement.level + 1]
    return ".".join([*parents, *([statement.module] if statement.module else [])])


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a module's statements, those inside `if` and `try` too: names bound for type checkers are bound lazily."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If):
            yield from _top_level([*statement.body, *statement.orelse])
        elif isinstance(statement, ast.Try):
            yield from _top_level([*statement.body, *(part for each in statement.handlers for part in each.body)])


def _targets(statement: ast.stmt) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(statement, Function | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _own_member(definition: Definition, name: str) -> Definition | None:
    """Return a member that a class itself defines: in its body, or by assigning to `self` in a method."""
    assert isinstance(definition.node, ast.ClassDef)
    found = [statement for statement in definition.node.body if name in _targets(statement)]
    if not found:
        found = [
            node
            for node in ast.walk(definition.node)
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            for part in (target.elts if isinstance(target, ast.Tuple) else [target])
            if ast.unparse(part) == f"self.{name}"
        ][:1]
    return Definition(definition.module, found[-1]) if found else None  # the last: overloads come first


def _parameters(node: Function) -> list[Parameter]:
    positional = [*node.args.posonlyargs, *node.args.args]
    is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list)
    num_required = len(positional) - len(node.args.defaults)
    found = [Parameter(each.arg, at < num_required, True) for at, each in enumerate(positional)]
    if found and found[0].name in ("self", "cls") and not is_static:
        del found[0]
    defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return found + [Parameter(each.arg, default is None, False) for each, default in defaults]
