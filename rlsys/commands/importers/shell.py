"""What a shell script passes to the program that it starts. Nothing is executed."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.errors import ConfigError

ASSIGNMENT = re.compile(r"^(?:export\s+|local\s+|readonly\s+)?([A-Za-z_]\w*)=(.*)$", re.DOTALL)
VARIABLE = re.compile(r"\$(?:\{(\w+)(\[@\]|:?-([^}]*))?\}|(\w+))")
HEREDOC = re.compile(r"^read\s.*?(\w+)\s*<<-?\s*['\"]?(\w+)['\"]?\s*$")
COMMENT = re.compile(r"(?<=\S)\s+#[^\"']*$")
"""After a command; one with quotes in it may be within them, and is left to shlex."""
ENDS = (";", "&&", "||", "|", "&", ">", ">>", "2>&1")
NUMBER = re.compile(r"^-\.?\d")


@dataclass(frozen=True)
class Call:
    """One program and its arguments: flags and `name=value` overrides, by name without dashes."""

    program: str
    arguments: dict[str, Any]


@dataclass
class _Script:
    origin: str
    variables: dict[str, list[str]] = field(default_factory=dict)  # as words: an array has several
    calls: list[Call] = field(default_factory=list)


def calls(text: str, origin: str) -> list[Call]:
    """The calls of a script that pass options. Variables are those that it sets, then those of the environment.

    Raises ConfigError for a variable in an option that neither sets, and for quotes that do not close.
    """
    script = _Script(origin)
    for statement in _statements(text):
        assigned = ASSIGNMENT.match(statement)
        if assigned and not _has_command(assigned[2]):
            _assign(script, assigned[1], assigned[2])
        elif (call := _call(script, statement)) is not None:
            script.calls.append(call)
    bare = [call for call in script.calls if not call.program]
    if len(bare) > 1:  # a list of flags, one a line
        merged = {name: value for call in bare for name, value in call.arguments.items()}
        script.calls = [call for call in script.calls if call.program] + [Call("", merged)]
    return script.calls


def scalar(text: str) -> Any:
    """A word as the value it stands for: JSON where it is, Python's True, False and None, a number, else text."""
    for name, value in {"true": True, "false": False, "none": None, "null": None}.items():
        if text.lower() == name:
            return value
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _statements(text: str) -> list[str]:
    """Logical lines: continued ones joined, comments left out, arrays and here-documents in one piece."""
    lines = iter([COMMENT.sub("", line).strip() for line in text.splitlines()])
    statements = []
    for line in lines:
        heredoc = HEREDOC.match(line)
        statement = _here_document(heredoc, lines) if heredoc else _whole(line, lines)
        if statement and not statement.startswith("#"):
            statements.append(statement)
    return statements


def _here_document(start: re.Match[str], lines: Iterator[str]) -> str:
    """`read ... NAME <<END` as if it were an array of words."""
    body = itertools.takewhile(lambda line: line != start[2], lines)
    return f"{start[1]}=({' '.join(line.removesuffix(chr(92)) for line in body)})"


def _whole(statement: str, lines: Iterator[str]) -> str:
    """A line with those that continue it. A comment between them is passed over, where bash would end the command."""
    while _is_open(statement):
        following = next((line for line in lines if not line.startswith("#")), None)
        if following is None:
            break
        statement = f"{statement.removesuffix(chr(92))} {following}"
    return statement


def _is_open(statement: str) -> bool:
    is_array = re.match(r"^\w+=\(", statement) is not None and not statement.endswith(")")
    return not statement.startswith("#") and (statement.endswith("\\") or is_array)


def _has_command(value: str) -> bool:
    """Whether what follows `NAME=` is a value and then a command, as in `A=1 python train.py --x`."""
    return not value.startswith("(") and re.search(r"\s--?\w|\s\w+\.py\b", value) is not None and value[:1] not in "\"'"


def _assign(script: _Script, name: str, value: str) -> None:
    if value.startswith(("$(", '"$(')):
        script.variables.pop(name, None)  # a command's output, which only running it would tell
    elif value.startswith("("):
        script.variables[name] = _split(script, value.strip()[1:-1])
    else:
        script.variables[name] = _split(script, value)[:1] or [""]


def _split(script: _Script, text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise ConfigError(f"{script.origin}: {error} in: {text[:80]}") from error


def _call(script: _Script, statement: str) -> Call | None:
    words = [word for raw in _split(script, statement) for word in _expanded(script, raw)]
    program, before, after = _program(words)
    launcher = {n: v for n, v in _arguments(script, words[:before]).items() if n == "num_processes"}
    arguments = launcher | _arguments(script, words[after:])
    return Call(program, arguments) if arguments else None


def _expanded(script: _Script, word: str, depth: int = 0) -> list[str]:
    """A word with its variables filled in; one that nobody sets stays as it is, to be complained about later.

    A word that is one variable becomes all words of an array, or of flags kept as text.
    """

    def value(match: re.Match[str]) -> list[str]:
        name, fallback = match[1] or match[4], match[3]
        found = script.variables.get(name)
        if found is None:
            outside = os.environ.get(name, fallback)
            found = None if outside is None else [outside]
        if found is None or depth > 8:
            return [match[0]]
        return [inner for part in found for inner in _expanded(script, part, depth + 1)]

    whole = VARIABLE.fullmatch(word)
    if whole is None:
        return [VARIABLE.sub(lambda match: " ".join(value(match)), word)]
    words = value(whole)
    return words[0].split() if len(words) == 1 and re.search(r"(^|\s)--?\w", words[0]) else words


def _program(words: Sequence[str]) -> tuple[str, int, int]:
    """What is started, where its launcher's arguments end, and where its own begin."""
    for position, word in enumerate(words):
        if word in ("-m", "--module") and position + 1 < len(words) and not words[position + 1].isdigit():
            return words[position + 1], position, position + 2
        if word.endswith(".py") and not word.startswith("-") and "=" not in word and _is_run(words, position):
            return word, position, position + 1
        if word == "trl" and words[position + 1 : position + 2]:
            return f"trl {words[position + 1]}", position, position + 2
        if word == "axolotl" and words[position + 1 : position + 2]:
            return f"axolotl {words[position + 1]}", position, position + 2
    return "", 0, 0


def _is_run(words: Sequence[str], position: int) -> bool:
    """Whether a `.py` word is the program, not the value of a flag before it."""
    before = words[:position]
    return any(re.search(r"(python\d*(\.\d+)?|torchrun|accelerate|deepspeed)$", word) for word in before)


def _arguments(script: _Script, words: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    position = 0
    while position < len(words) and words[position] not in ENDS:
        word = words[position].rstrip(";")
        position += 1
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            values = [value] if equals else []
            while not equals and position < len(words) and _is_value(words[position]):
                values.append(words[position])
                position += 1
            found[name] = _value(script, name, values)
        elif (override := re.match(r"^[+~]*([A-Za-z_][\w.]*)=(.*)$", word, re.DOTALL)) is not None:
            found[override[1]] = _value(script, override[1], [override[2]])
    return found


def _is_value(word: str) -> bool:
    return word not in ENDS and (not word.startswith("-") or NUMBER.match(word) is not None)


def _value(script: _Script, name: str, words: Sequence[str]) -> Any:
    for word in words:
        if unset := VARIABLE.search(word):
            raise ConfigError(
                f"{script.origin}: '{name}' is {word!r}, and the script does not set {unset[0]}: set it in the "
                "environment of this command"
            )
    if not words:
        return True
    return scalar(words[0]) if len(words) == 1 else [scalar(word) for word in words]
