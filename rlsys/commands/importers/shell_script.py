"""The options that a shell script passes to the program it starts, from the script's syntax tree.

Nothing is executed: tree-sitter parses the script, and variables, arrays and here-documents are filled in. Conditions
are not decided: a variable that they decide is unknown, and so is the output of a command.
"""

from __future__ import annotations

import ast
import json
import operator
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from rlsys.commands.importers.recipe_yaml import BOOLEANS, override_value
from rlsys.commands.importers.shell_variables import MARK, Unread, Variables
from rlsys.errors import ConfigError

BASH = Language(tree_sitter_bash.language())
# bash ends a command at a comment between continued lines; scripts in use have such comments and mean to go on.
COMMENT_BETWEEN = re.compile(r"(?<=\\\n)[ \t]*#.*(?=\n)")
LAUNCHERS = re.compile(r"(python\d*(\.\d+)?|torchrun|accelerate|deepspeed)$")
SUBCOMMANDS = ("trl", "axolotl", "vllm")  # programs whose first argument says what they do
OVERRIDE = re.compile(r"^[+~]*([A-Za-z_][\w./-]*)=(.*)$", re.DOTALL)
NUMBER = re.compile(r"^-\.?\d")
EXPANSIONS = ("simple_expansion", "expansion")
SURE = ("cd ", "mkdir ", "source ", ". ", "set ", "echo ", "pip ", "conda ")  # commands that are meant to succeed
BRANCHES = ("elif_clause", "else_clause")
LOOPS = ("for_statement", "c_style_for_statement", "while_statement")
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,  # as bash divides, above 0
}


@dataclass(frozen=True)
class Call:
    """One program and its arguments: flags and `name=value` overrides, by name without dashes."""

    program: str
    arguments: dict[str, Any]
    launcher: dict[str, Any] = field(default_factory=dict)  # flags before the program: accelerate's, torchrun's
    line: int = 1


def calls(text: str, origin: str) -> list[Call]:
    """Return the calls of a script that pass options; `origin` names the script in errors.

    Variables are those that the script sets, then those of the environment. A word of which a part is not known is an
    Unread one. Raises ConfigError for a script that bash could not parse.
    """
    text = COMMENT_BETWEEN.sub(r"\\", text)
    root = Parser(BASH).parse(text.encode()).root_node
    _check_parsed(root, text, origin)
    script = _Script()
    script.read(root)
    with_program = [call for call in script.calls if call.program]
    flags = {name: value for call in script.calls if not call.program for name, value in call.arguments.items()}
    return [*with_program, Call("", flags)] if flags else with_program


def scalar(text: str) -> Any:
    """Return the value that the word of a flag stands for: a boolean, JSON, a number, else the text."""
    if text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    if text == "null":  # a word to argparse
        return text
    for parse in (json.loads, int, float):
        try:
            return parse(text)
        except (ValueError, RecursionError):
            continue
    return text


def _check_parsed(root: Node, text: str, origin: str) -> None:
    node = root
    while node.has_error and node.type != "ERROR" and not node.is_missing:
        node = next(child for child in node.children if child.has_error)
    if node.has_error:
        line = text.splitlines()[node.start_point.row].strip() if text.strip() else ""
        raise ConfigError(f"{origin}: bash could not parse this (an open quote or bracket?): {line[:80]}")


def _text(node: Node) -> str:
    return (node.text or b"").decode()


def _line(node: Node) -> int:
    return node.start_point.row + 1


class _Script:
    """Variables set and calls made so far while a script's syntax tree is read from top to bottom."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._variables = Variables()

    def read(self, node: Node) -> None:
        """Read one node and what is below it."""
        readers = {
            "variable_assignment": self._assign,
            "command": self._call,
            "heredoc_body": self._read_here_document,
            "if_statement": self._read_condition,
            "case_statement": self._read_cases,
            "list": self._read_list,
            "subshell": self._read_subshell,
            **dict.fromkeys(LOOPS, self._read_loop),
        }
        readers.get(node.type, self._read_children)(node)

    def _read_children(self, node: Node) -> None:
        self._read_all(node.named_children)

    def _read_all(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self.read(node)

    def _branch(self, node: Node, branches: Sequence[Sequence[Node]], *, is_one_taken: bool = False) -> None:
        where = f"line {_line(node)} (`{_text(node).splitlines()[0][:60]}`)"
        self._variables.branch([partial(self._read_all, nodes) for nodes in branches], where, is_one_taken=is_one_taken)

    def _read_condition(self, node: Node) -> None:
        others = [child for child in node.named_children if child.type in BRANCHES]
        first = [child for child in node.named_children if child.type not in BRANCHES]
        has_else = any(child.type == "else_clause" for child in others)
        self._branch(node, [first, *(child.named_children for child in others)], is_one_taken=has_else)

    def _read_cases(self, node: Node) -> None:
        items = [child for child in node.named_children if child.type == "case_item"]
        has_default = any(_text(item).lstrip("( ").startswith("*)") for item in items)
        self._branch(node, [item.named_children for item in items], is_one_taken=has_default)

    def _read_loop(self, node: Node) -> None:
        variable = node.child_by_field_name("variable")
        if variable:
            name = _text(variable)
            reason = f"line {_line(node)} sets ${name} in a loop"
            self._variables.values[name] = [self._variables.unknown(f"${name}", reason)]
        self._branch(node, [node.named_children])

    def _read_list(self, node: Node) -> None:
        """Read `cd a && b` as one after the other; after other commands the second may not be run."""
        first, last = node.named_children[0], node.named_children[-1]
        self.read(first)
        surely = first.type in ("variable_assignment", "declaration_command", "list") or _text(first).startswith(SURE)
        if surely and node.children[1].type == "&&":
            self.read(last)
        else:
            self._branch(node, [[last]])

    def _read_subshell(self, node: Node) -> None:
        before = dict(self._variables.values)
        self._read_children(node)
        self._variables.values = before

    def _assign(self, node: Node) -> None:
        target, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        if target is None:
            return
        name, _, _ = _text(target).partition("[")
        if target.type == "subscript":  # one element of an array
            reason = f"line {_line(node)} changes a part of ${name}"
            self._variables.values[name] = [self._variables.unknown(f"${name}", reason)]
            return
        if value is not None and _text(value).strip('"').startswith(("$(", "`")) and not _is_number(value):
            reason = f"line {_line(node)} sets ${name} to the output of a command, which is not run: set it in the "
            known = os.environ.get(name)  # what that command would have found, from who knows it
            unknown = self._variables.unknown(f"${name}", f"{reason}environment of this command")
            self._variables.values[name] = [unknown if known is None else known]
            return
        words = [""] if value is None else self._words(value)
        if value is not None and value.type != "array":
            words = [" ".join(words)]  # an assignment does not split
        if node.children[1].type == "+=":
            before = self._variables.look_up(name) or []
            is_array = value is not None and value.type == "array"
            words = [*before, *words] if is_array else ["".join(before[:1]) + words[0], *before[1:]]
        self._variables.values[name] = words

    def _read_here_document(self, body: Node) -> None:
        """Set the variable of `read ... NAME <<END` to the words of the document."""
        statement = body.parent and body.parent.parent
        command = _text(statement.children[0]).split() if statement else []
        if command[:1] == ["read"]:
            root = Parser(BASH).parse(f"{command[-1]}=({_text(body)})".encode()).root_node
            self.read(root.children[0])

    def _call(self, node: Node) -> None:
        name = node.child_by_field_name("name")
        for part in node.named_children:
            # The grammar takes several assignments on the line above for a prefix of the command.
            if part.type == "variable_assignment" and name and part.end_point.row < name.start_point.row:
                self._assign(part)
        parts = [part for part in node.named_children if part.type not in ("variable_assignment", "file_redirect")]
        words = [word for part in parts for word in self._words(part)]
        program, before, after = _program(words)
        arguments = self._arguments(words[after:])
        if arguments or program:
            launcher = self._arguments(words[:before])
            self.calls.append(Call(self._variables.finished(program), arguments, launcher, _line(name or node)))

    def _words(self, node: Node) -> list[str]:
        """Return the words that bash makes of one node: several for an array and for an unquoted variable."""
        if node.type in ("array", "command_name"):
            return [word for child in node.named_children for word in self._words(child)]
        if node.type in EXPANSIONS:
            values = self._values(node)
            return values[0].split() if len(values) == 1 else values  # scripts in use mean an array's words as they are
        inner = node.named_children
        if node.type == "string" and len(inner) == 1 and _text(node) == f'"{_text(inner[0])}"' and _is_whole(inner[0]):
            return self._values(inner[0])
        return [] if node.type == "comment" else [self._filled(node)]

    def _filled(self, node: Node) -> str:
        """Return one word, with its variables filled in and its quotes and escapes taken off."""
        text = _text(node)
        lead = text[: -len(text.lstrip())]  # within a string a node begins with the blanks before it
        if node.type in EXPANSIONS:
            return lead + " ".join(self._values(node))
        if node.type == "arithmetic_expansion":
            return lead + self._calculated(node)
        if node.type == "command_substitution":
            return lead + self._variables.unknown(
                text.strip(), f"line {_line(node)} takes the output of a command, which is not run"
            )
        if node.type in ("string", "concatenation"):
            return "".join(_text(child)[:-1] if child.type == '"' else self._filled(child) for child in node.children)
        if node.type == "raw_string":
            return text[1:-1]
        escaped = '([$`"\\\\])' if node.type == "string_content" else "(.)"
        return re.sub(rf"\\{escaped}", r"\1", text.replace("\\\n", ""))

    def _values(self, node: Node) -> list[str]:
        """Return the words that a variable stands for; one that is set nowhere is unknown."""
        text = _text(node).strip()
        names = [child for child in node.named_children if child.type != "comment"]
        if names[:1] and _text(names[0]) in ("@", "*"):
            return []  # arguments of the script: there are none
        name, _, index = (_text(names[0]) if names else "").partition("[")
        tokens = [child.type for child in node.children if not child.is_named and child.type not in ("${", "}", "$")]
        action = tokens[0] if tokens else ""
        found = self._variables.look_up(name)
        if index.rstrip("]") not in ("", "@", "*") or action not in ("", ":-", "-", ":=", "=", ":+", "+", ":?", "?"):
            reason = f"line {_line(node)} changes a variable in a way that is not read"
            return [self._variables.unknown(text, reason)]
        is_set = found is not None and (not action.startswith(":") or "".join(found) != "")
        if action.endswith("+") and not (found and MARK in "".join(found)):
            return [self._filled(one) for one in names[1:]] if is_set else []
        if is_set and found is not None:
            return found
        if action.endswith(("-", "=")):
            given = [self._filled(one) for one in names[1:]] or [""]
            if action.endswith("="):
                self._variables.values[name] = given
            return given
        reason = f"the script does not set ${name}: set it in the environment of this command"
        return [self._variables.unknown(text, reason)]

    def _calculated(self, node: Node) -> str:
        """Return the value of `$((...))`, of whole numbers and variables."""
        text = _text(node).strip()
        try:
            return str(_calculate(ast.parse(self._formula(node.children[1:-1]).replace("/", "//"), mode="eval").body))
        except (ValueError, SyntaxError, ArithmeticError):
            return self._variables.unknown(text, f"line {_line(node)} calculates something that is not read")

    def _formula(self, nodes: Sequence[Node]) -> str:
        """Return a calculation with its variables filled in, which may stand without `$`."""
        parts = []
        for node in nodes:
            if node.type in EXPANSIONS:
                parts.append(" ".join(self._values(node)))
            elif node.type == "variable_name":
                parts.append(" ".join(self._variables.look_up(_text(node)) or ["?"]))
            else:
                parts.append(self._formula(node.children) if node.children else _text(node))
        return "".join(parts)

    def _arguments(self, words: Sequence[str]) -> dict[str, Any]:
        """Return flags with the words after them, and `name=value` overrides."""
        found: dict[str, list[str]] = {}
        overrides: dict[str, str] = {}
        flag = ""  # the flag whose values are being read
        for word in words:
            override = OVERRIDE.match(word)
            if word.startswith("--") and len(word) > 2:
                flag, equals, value = word[2:].partition("=")
                found[flag] = [value] if equals else []
                flag = "" if equals else flag
            elif flag and (not word.startswith("-") or NUMBER.match(word)):
                found[flag].append(word)
            else:
                flag = ""
                overrides |= {override[1]: override[2]} if override else {}
        flags = {name: [self._value(word, scalar) for word in words] for name, words in found.items()}
        values = {name: words[0] if len(words) == 1 else words or True for name, words in flags.items()}
        return values | {name: self._value(word, override_value) for name, word in overrides.items()}

    def _value(self, word: str, read: Any) -> Any:
        whole = self._variables.finished(word)
        return whole if isinstance(whole, Unread) else read(whole)


def _is_whole(node: Node) -> bool:
    """Return whether `"${A[@]}"` or `"$@"` is this node: each word of it stays a word."""
    return node.type in EXPANSIONS and _text(node).strip("${}").endswith(("[@]", "@"))


def _is_number(node: Node) -> bool:
    return _text(node).strip('"').startswith("$((")


def _calculate(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_calculate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return int(ARITHMETIC[type(node.op)](_calculate(node.left), _calculate(node.right)))
    raise ValueError("not a calculation with whole numbers")


def _program(words: Sequence[str]) -> tuple[str, int, int]:
    """Return what is started, where its launcher's arguments end, and where its own begin."""
    for position, (word, following) in enumerate(zip(words, [*words[1:], ""], strict=True)):
        if following and word in ("-m", "--module") and not following.isdigit():
            return following, position, position + 2
        if following and word in SUBCOMMANDS and not words[max(position - 1, 0)].startswith("-"):
            return f"{word} {following}", position, position + 2
        is_file = word.endswith(".py") and not word.startswith("-") and "=" not in word
        if is_file and any(LAUNCHERS.search(launcher) for launcher in words[:position]):
            return word, position, position + 1
    return "", 0, 0
