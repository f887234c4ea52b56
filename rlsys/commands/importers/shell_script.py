"""The options that a shell script passes to the program it starts, from the script's syntax tree.

Nothing is executed: tree-sitter parses the script, and variables, arrays and here-documents are filled in. Branches are
not decided: every command of the script is read, and the last assignment to a variable counts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from rlsys.errors import ConfigError

BASH = Language(tree_sitter_bash.language())
# bash ends a command at a comment between continued lines; scripts in use have such comments and mean to go on.
COMMENTS_BETWEEN = re.compile(r"(?<=\\\n)(?:[ \t]*#.*\n)+")
LAUNCHERS = re.compile(r"(python\d*(\.\d+)?|torchrun|accelerate|deepspeed)$")
SUBCOMMANDS = ("trl", "axolotl")  # programs whose first argument says what they do
OVERRIDE = re.compile(r"^[+~]*([A-Za-z_][\w.]*)=(.*)$", re.DOTALL)
NUMBER = re.compile(r"^-\.?\d")
VARIABLE = re.compile(r"\$\{?(\w+)(?:\[@\])?(?::?-(.*))?\}?", re.DOTALL)  # its name and its default
QUOTED_ARRAY = re.compile(r'"\$\{\w+\[@\]\}"')
EXPANSIONS = ("simple_expansion", "expansion")
UNSET = "\0"  # stands around a variable that is set nowhere
CONSTANTS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True)
class Call:
    """One program and its arguments: flags and `name=value` overrides, by name without dashes."""

    program: str
    arguments: dict[str, Any]


def calls(text: str, origin: str) -> list[Call]:
    """Return the calls of a script that pass options; `origin` names the script in errors.

    Variables are those that the script sets, then those of the environment. Raises ConfigError for a variable in an
    option that neither sets, and for a script that bash could not parse.
    """
    text = COMMENTS_BETWEEN.sub("", text)
    root = Parser(BASH).parse(text.encode()).root_node
    _check_parsed(root, text, origin)
    script = _Script(origin)
    script.read(root)
    with_program = [call for call in script.calls if call.program]
    flags = {name: value for call in script.calls if not call.program for name, value in call.arguments.items()}
    return [*with_program, Call("", flags)] if flags else with_program


def scalar(text: str) -> Any:
    """Return the value that a word stands for: a constant, JSON, a number, else the text."""
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    for parse in (json.loads, float):
        try:
            return parse(text)
        except ValueError:
            continue
    return text


def _check_parsed(root: Node, text: str, origin: str) -> None:
    node = root
    while node.has_error and node.type != "ERROR" and not node.is_missing:
        node = next(child for child in node.children if child.has_error)
    if node.has_error:
        line = text.splitlines()[node.start_point.row].strip()
        raise ConfigError(f"{origin}: bash could not parse this (an open quote or bracket?): {line[:80]}")


def _text(node: Node) -> str:
    return (node.text or b"").decode()


class _Script:
    """Variables set and calls made so far while a script's syntax tree is read from top to bottom."""

    def __init__(self, origin: str) -> None:
        self.calls: list[Call] = []
        self._origin = origin
        self._variables: dict[str, list[str]] = {}  # as words: an array has several

    def read(self, node: Node) -> None:
        """Read one node and what is below it."""
        if node.type == "variable_assignment":
            self._assign(node)
        elif node.type == "command":
            self._call(node)
        elif node.type == "heredoc_body":
            self._read_here_document(node)
        else:
            for child in node.named_children:
                self.read(child)

    def _assign(self, node: Node) -> None:
        name, _, text = _text(node).partition("=")
        value = node.child_by_field_name("value")
        if text.startswith(("$(", '"$(')):
            self._variables.pop(name, None)  # a command's output, which is not known without running it
        else:
            self._variables[name] = [""] if value is None else self._words(value)

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
        launcher = {name: v for name, v in self._arguments(words[:before]).items() if name == "num_processes"}
        arguments = launcher | self._arguments(words[after:])
        if arguments:
            self.calls.append(Call(program, arguments))

    def _words(self, node: Node) -> list[str]:
        """Return the words that bash makes of one node: several for an array and for an unquoted variable."""
        if node.type in ("array", "command_name"):
            return [word for child in node.named_children for word in self._words(child)]
        if node.type in EXPANSIONS:
            values = self._values(node)
            return values[0].split() if len(values) == 1 else values
        if QUOTED_ARRAY.fullmatch(_text(node)):
            return self._values(node.named_children[0])
        return [] if node.type == "comment" else [self._filled(node)]

    def _filled(self, node: Node) -> str:
        """Return one word, with its variables filled in and its quotes and escapes taken off."""
        text = _text(node)
        if node.type in EXPANSIONS:  # within a string the node begins with the blanks before the variable
            return text[: -len(text.lstrip())] + " ".join(self._values(node))
        if node.type in ("string", "concatenation"):
            return "".join(_text(child)[:-1] if child.type == '"' else self._filled(child) for child in node.children)
        if node.type == "raw_string":
            return text[1:-1]
        escaped = '([$`"\\\\])' if node.type == "string_content" else "(.)"
        return re.sub(rf"\\{escaped}", r"\1", text.replace("\\\n", ""))

    def _values(self, node: Node) -> list[str]:
        """Return the words that a variable stands for; one that is set nowhere stays as it is, marked as UNSET."""
        text = _text(node).strip()
        found = VARIABLE.fullmatch(text)
        if found is None:  # `${NAME%suffix}` and the like
            return [text]
        name, default = found.groups()
        if name in self._variables:
            return self._variables[name]
        if name in os.environ:
            return [os.environ[name]]
        if default:
            return self._words(node.named_children[1])
        return [f"{UNSET}{text}{UNSET}" if default is None else ""]

    def _arguments(self, words: Sequence[str]) -> dict[str, Any]:
        """Return flags with the words after them, and `name=value` overrides."""
        found: dict[str, list[str]] = {}
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
                found |= {override[1]: [override[2]]} if override else {}
        for name, unset in [(name, word) for name, words in found.items() for word in words if UNSET in word]:
            raise ConfigError(
                f"{self._origin}: '{name}' is {unset.replace(UNSET, '')!r}, and the script does not set "
                f"{unset.split(UNSET)[1]}: set it in the environment of this command"
            )
        values = {name: [scalar(word) for word in words] for name, words in found.items()}
        return {name: words[0] if len(words) == 1 else words or True for name, words in values.items()}


def _program(words: Sequence[str]) -> tuple[str, int, int]:
    """Return what is started, where its launcher's arguments end, and where its own begin."""
    for position, (word, following) in enumerate(zip(words, [*words[1:], ""], strict=True)):
        if following and word in ("-m", "--module") and not following.isdigit():
            return following, position, position + 2
        if following and word in SUBCOMMANDS:
            return f"{word} {following}", position, position + 2
        is_file = word.endswith(".py") and not word.startswith("-") and "=" not in word
        if is_file and any(LAUNCHERS.search(launcher) for launcher in words[:position]):
            return word, position, position + 1
    return "", 0, 0
