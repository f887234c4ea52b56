"""Judgement of a program by test cases: given inputs and expected outputs."""

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

# The file that a program in each language is put in.
LANGUAGES = {"python": "main.py", "javascript": "main.js"}
# The first program that is run to find out whether a language works here.
HELLO = {"python": "print('hello')", "javascript": "console.log('hello')"}


@dataclass(frozen=True)
class Verdict:
    """The result of a program's test cases: the share that passed, and how each run ended.

    Cases after one that timed out are not run and count as not passed.
    """

    passed_fraction: float
    results: Sequence[Result]  # results of the cases that were run


class OutOfTimeError(Exception):
    """The deadline came before all test cases were run."""


def fenced(text: str, language: str) -> str | None:
    """Return the last fenced code block of `language` in a response, or None if there is none."""
    blocks = re.findall(rf"```{re.escape(language)}[^\S\n]*\n(.*?)```", text, re.DOTALL)
    return blocks[-1] if blocks else None


def judge(code: str, language: str, cases: Sequence[Mapping[str, Any]], limits: Limits, end: float) -> Verdict:
    """Run a program once per test case and return which cases passed.

    A case passes if the program, given the case's `input`, exits with status 0 and prints the case's `output`; white
    space at the ends of lines is ignored. With `fn_name` that function is called with `input` and must return `output`.

    Args:
        code: the program.
        language: one of `LANGUAGES`.
        cases: mappings with `input`, `output` and, if a function is called, `fn_name`.
        limits: limits of each run.
        end: end of the time for all cases, on the clock of `time.monotonic()`.

    Raises:
        ValueError: the language or a case cannot be run.
        RuntimeError: the sandbox cannot be made.
        OutOfTimeError: there is no time for the next case.
    """
    check_language(language)
    programs = [_program(code, language, case) for case in cases]
    results: list[Result] = []
    num_passed = 0
    for program, case in zip(programs, cases, strict=True):
        left = end - time.monotonic()
        if left < limits.wall_s:  # the next run might be cut off through no fault of the program
            raise OutOfTimeError
        result = run(program, limits)
        if result.outcome == "refused":
            raise RuntimeError(f"the sandbox could not be made: {result.stderr.strip()[-300:]}")
        results.append(result)
        num_passed += _passes(result, case)
        if result.outcome == "timeout":  # the remaining cases would most likely take as long
            break
    return Verdict(num_passed / len(cases), results)


@cache
def check_language(language: str) -> None:
    """Run a first program in `language` in a sandbox. Raises ValueError if that fails on this machine."""
    if language not in LANGUAGES:
        raise ValueError(f"programs in '{language}' cannot be run: {nearest(language, LANGUAGES)}")
    if language == "javascript" and shutil.which("node") is None:
        raise ValueError("programs in javascript cannot be run: install 'node'")
    result = run(_program(HELLO[language], language, {"input": "", "output": ""}), Limits())
    if result.stdout.strip() != "hello":
        raise ValueError(
            f"a first program in {language} failed in the sandbox: {result.outcome}: {result.stderr[-300:]}"
        )


CALL = """
if __name__ == "__main__":
    import json, sys
    print(json.dumps({name}(*json.load(sys.stdin))))
"""


def _program(code: str, language: str, case: Mapping[str, Any]) -> Program:
    missing = [key for key in ("input", "output") if key not in case]
    if missing:
        raise ValueError(
            f"a test case has no '{missing[0]}': it needs 'input' and 'output', and its keys are {', '.join(case)}"
        )
    name, given, file = case.get("fn_name"), case["input"], LANGUAGES[language]
    if language == "javascript":
        node = os.path.realpath(shutil.which("node") or "node")
        made = Program([node, file], {file: code}, str(given), reserves_memory=True)
    else:
        made = Program([python(), "-I", file], {file: code}, str(given))  # -I: no user site, no PYTHON* variables
    if not name:
        return made
    if language != "python" or not str(name).isidentifier():
        raise ValueError(
            f"a test case calls the function '{name}': only functions in python can be called, not in {language}"
        )
    arguments = given if isinstance(given, list) else json.loads(given)
    return replace(made, files={file: code + CALL.format(name=name)}, stdin=json.dumps(arguments))


def _passes(result: Result, case: Mapping[str, Any]) -> bool:
    if result.outcome != "ok":
        return False
    if not case.get("fn_name"):
        # White space at the ends of lines and of the text is not part of what a case tests.
        return _lines(result.stdout) == _lines(str(case["output"]))
    try:
        returned = json.loads(result.stdout.strip().rpartition("\n")[2])
    except (ValueError, RecursionError):  # the last line is not the JSON that CALL prints
        return False
    return returned in _accepted_outputs(case["output"])


def _accepted_outputs(output: Any) -> list[Any]:
    """Return the values that a function may return: data sets write text as it is or as JSON, numbers as JSON text."""
    if not isinstance(output, str):
        return [output]
    try:
        return [output, json.loads(output)]
    except ValueError:
        return [output]


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
