"""What an installed or unpacked vLLM lacks of the list of uses, and the text of the definitions that are used."""

from __future__ import annotations

import ast

from tests.contracts.source import Definition, Package, Parameter
from tests.contracts.vllm_uses import Use


def callee(call: str) -> str:
    """Return the name of the function in a listed call."""
    return ast.unparse(_parsed(call).func)


def keywords(call: str) -> set[str]:
    """Return the names of the keyword arguments in a listed call."""
    return {str(keyword.arg) for keyword in _parsed(call).keywords}


def faults(package: Package, use: Use) -> list[str]:
    """Return what the package lacks of one use, one sentence per fault."""
    where = f"{use.module}.{use.name}"
    definition = package.find(use.module, use.name)
    if definition is None:
        return [f"{where} does not exist"]
    found = [f"{where} has no member {name}" for name in _member_names(use) if not package.member(definition, name)]
    for call in use.calls:
        target = _target(package, definition, use, callee(call))
        if target is not None:
            found += [f"{where}: {call}: {fault}" for fault in _unbound(call, package.parameters(target))]
    if isinstance(definition.node, ast.Module):
        # A function that its module does not call would be replaced without effect.
        uncalled = [name for name in use.replaces if not package.is_called(definition.module, name)]
        found += [f"{where} does not call {name}, which rlsys replaces" for name in uncalled]
    literals = {node.value for node in ast.walk(definition.node) if isinstance(node, ast.Constant)}
    return found + [f"{where} does not allow {value!r}" for value in use.values if value not in literals]


def texts(package: Package, use: Use) -> dict[str, str]:
    """Return the text of every definition that belongs to a use: signatures, defaults and bodies."""
    definition = package.find(use.module, use.name)
    if definition is None:
        return {}
    found = {f"{use.module}.{use.name}.{name}": package.member(definition, name) for name in _member_names(use)}
    for call in use.calls:
        target = _target(package, definition, use, callee(call))
        if target is not None and not isinstance(target.node, ast.ClassDef):
            found[f"{use.module}.{callee(call)}"] = target
        elif target is not None:
            fields = {name: package.member(target, name) for name in ["__init__", *sorted(keywords(call))]}
            found |= {f"{use.module}.{use.name}({name})": field for name, field in fields.items()}
    if isinstance(definition.node, ast.ClassDef):
        found[f"{use.module}.{use.name}: bases"] = Definition(definition.module, _header(definition.node))
    elif not isinstance(definition.node, ast.Module):
        found[f"{use.module}.{use.name}"] = definition
    return {name: each.text for name, each in found.items() if each is not None}


def _member_names(use: Use) -> list[str]:
    called = [name for call in use.calls if (name := callee(call)) != use.name]
    return list(dict.fromkeys([*called, *use.reads, *use.replaces]))


def _target(package: Package, definition: Definition, use: Use, name: str) -> Definition | None:
    return definition if name == use.name else package.member(definition, name)


def _unbound(call: str, parameters: list[Parameter]) -> list[str]:
    """Return why a listed call does not fit the parameters."""
    parsed, positional = _parsed(call), [each.name for each in parameters if each.is_positional]
    given = [ast.unparse(argument) for argument in parsed.args]
    found = []
    if given != positional[: len(given)]:
        found.append(f"the first parameters are {', '.join(positional[: len(given)])}")
    known = {each.name for each in parameters}
    found += [f"there is no parameter {name}" for name in sorted(keywords(call) - known)]
    required = {each.name for each in parameters if each.is_required}
    return found + [f"{name} is required" for name in sorted(required - keywords(call) - set(given))]


def _header(node: ast.ClassDef) -> ast.ClassDef:
    """Return a class without its body: its name, bases and decorators."""
    header = ast.ClassDef(node.name, node.bases, node.keywords, [ast.Pass()], node.decorator_list)
    return ast.fix_missing_locations(header)


def _parsed(call: str) -> ast.Call:
    parsed = ast.parse(call, mode="eval").body
    assert isinstance(parsed, ast.Call), f"{call!r} is no call"
    return parsed
