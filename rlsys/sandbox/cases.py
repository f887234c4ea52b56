"""A program against test cases: what it prints for what it is given."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from rlsys.errors import nearest
from rlsys.sandbox.command import python
from rlsys.sandbox.program import Limits, Program, Result
from rlsys.sandbox.run import run

LANGUAGES = {"python": "main.py", "javascript": "main.js"}
"""Name of the file that a program of each is put in."""
HELLO = {"python": "print('hello')", "javascript": "console.log('hello')"}


@dataclass(frozen=True)
class Verdict:
    """Of one program: the share of its cases that passed, and how each run ended. Cases after one that timed out are
    not run, and have not passed."""

    share: float
    results: Sequence[Result]


class OutOfTimeError(Exception):
    """The deadline came before every case was run."""


def fenced(text: str, language: str) -> str | None:
    """The last fenced block of `language` in a response; None without one."""
    blocks = re.findall(rf"```{re.escape(language)}[^\S\n]*\n(.*?)```", text, re.DOTALL)
    return blocks[-1] if blocks else None


def judge(code: str, language: str, cases: Sequence[Mapping[str, Any]], limits: Limits, end: float) -> Verdict:
    """Run `code` once a case, with the case's `input`; it passes when it ends well and prints the case's `output`.

    Lines are compared without white space at their ends. A case with `fn_name` calls that function instead and
    compares what it returns.

    Args:
        end: of the time there is, on `time.monotonic()`'s clock.

    Raises ValueError for a language or case that cannot be run, RuntimeError where the sandbox cannot be made,
    OutOfTimeError.
    """
    check_language(language)
    programs = [_program(code, language, case) for case in cases]
    results: list[Result] = []
    num_passed = 0
    for program, case in zip(programs, cases, strict=True):
        left = end - time.monotonic()
        if left < limits.wall_s:
            raise OutOfTimeError
        result = run(program, limits)
        if result.outcome == "refused":
            raise RuntimeError(f"the sandbox could not be made: {result.stderr.strip()[-300:]}")
        results.append(result)
        num_passed += _passes(result, case)
        if result.outcome == "timeout":  # the others would take as long
            break
    return Verdict(num_passed / len(cases), results)


@cache
def check_language(language: str) -> None:
    """Raise ValueError unless a first program in `language` runs in a sandbox here."""
    if language not in LANGUAGES:
        raise ValueError(f"no way to run '{language}': {nearest(language, LANGUAGES)}")
    if language == "javascript" and shutil.which("node") is None:
        raise ValueError("'node' is not installed: javascript programs cannot be run")
    result = run(_program(HELLO[language], language, {"input": "", "output": ""}), Limits())
    if result.stdout.strip() != "hello":
        raise ValueError(f"a first {language} program fails in the sandbox: {result.outcome}: {result.stderr[-300:]}")


CALL = """
if __name__ == "__main__":
    import json, sys
    print(json.dumps({name}(*json.load(sys.stdin))))
"""


def _program(code: str, language: str, case: Mapping[str, Any]) -> Program:
    missing = [key for key in ("input", "output") if key not in case]
    if missing:
        raise ValueError(f"a test case has no '{missing[0]}': its keys are {', '.join(case)}")
    name, given, file = case.get("fn_name"), case["input"], LANGUAGES[language]
    if language == "javascript":
        node = os.path.realpath(shutil.which("node") or "node")
        made = Program([node, file], {file: code}, str(given), reserves_memory=True)
    else:
        made = Program([python(), "-I", file], {file: code}, str(given))
    if not name:
        return made
    if language != "python" or not str(name).isidentifier():
        raise ValueError(f"a test case calls '{name}': functions can be called in python only")
    arguments = given if isinstance(given, list) else json.loads(given)
    return replace(made, files={file: code + CALL.format(name=name)}, stdin=json.dumps(arguments))


def _passes(result: Result, case: Mapping[str, Any]) -> bool:
    if result.outcome != "ok":
        return False
    if not case.get("fn_name"):
        return _lines(result.stdout) == _lines(str(case["output"]))
    try:
        returned = json.loads(result.stdout.strip().rpartition("\n")[2])
    except (ValueError, RecursionError):  # whatever it was, not what a function returned
        return False
    return returned in _wanted(case["output"])


def _wanted(output: Any) -> list[Any]:
    """What a function may return: data sets write a text as itself or as JSON, and numbers as JSON in a text."""
    if not isinstance(output, str):
        return [output]
    try:
        return [output, json.loads(output)]
    except ValueError:
        return [output]


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
