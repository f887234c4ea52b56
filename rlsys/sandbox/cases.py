"""A program against test cases: what it prints for what it is given."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from rlsys.errors import nearest
from rlsys.sandbox.program import Limits, Program, Result
from rlsys.sandbox.run import python, run

LANGUAGES = {"python": "main.py", "javascript": "main.js", "bash": "main.sh"}
"""Name of the file that a program of each is put in."""


@dataclass(frozen=True)
class Verdict:
    """Of one program: the share of its cases that passed, and how each run ended."""

    share: float
    results: Sequence[Result]


def fenced(text: str, language: str) -> str | None:
    """The last fenced block of `language` in a response; None without one."""
    blocks = re.findall(rf"```{re.escape(language)}[^\S\n]*\n(.*?)```", text, re.DOTALL)
    return blocks[-1] if blocks else None


def judge(code: str, language: str, cases: Sequence[Mapping[str, Any]], limits: Limits, executor: Executor) -> Verdict:
    """Run `code` once a case, with the case's `input`; it passes when it ends well and prints the case's `output`.

    Lines are compared without white space at their ends. A case with `fn_name` calls that function instead and
    compares what it returns.

    Raises ValueError for a language or case that cannot be run, RuntimeError where the sandbox cannot be made.
    """
    command = _command(language)
    programs = [_program(code, language, command, case) for case in cases]
    results = list(executor.map(lambda program: run(program, limits), programs))
    refused = next((result for result in results if result.outcome == "refused"), None)
    if refused is not None:
        raise RuntimeError(f"the sandbox could not be made: {refused.stderr.strip()[-300:]}")
    passed = [_passes(result, case) for result, case in zip(results, cases, strict=True)]
    return Verdict(sum(passed) / len(passed), results)


def _command(language: str) -> list[str]:
    if language not in LANGUAGES:
        raise ValueError(f"no way to run '{language}': {nearest(language, LANGUAGES)}")
    if language == "python":
        return [python(), "-I", LANGUAGES[language]]
    tool = {"javascript": "node", "bash": "bash"}[language]
    if shutil.which(tool) is None:
        raise ValueError(f"'{tool}' is not installed: {language} programs cannot be run")
    return [tool, LANGUAGES[language]]


CALL = """
if __name__ == "__main__":
    import json, sys
    print(json.dumps({name}(*json.load(sys.stdin))))
"""


def _program(code: str, language: str, command: Sequence[str], case: Mapping[str, Any]) -> Program:
    missing = [key for key in ("input", "output") if key not in case]
    if missing:
        raise ValueError(f"a test case has no '{missing[0]}': its keys are {', '.join(case)}")
    name, given = case.get("fn_name"), case["input"]
    if not name:
        return Program(command, {LANGUAGES[language]: code}, str(given))
    if language != "python" or not str(name).isidentifier():
        raise ValueError(f"a test case calls '{name}': functions can be called in python only")
    arguments = given if isinstance(given, list) else json.loads(given)
    return Program(command, {LANGUAGES[language]: code + CALL.format(name=name)}, json.dumps(arguments))


def _passes(result: Result, case: Mapping[str, Any]) -> bool:
    if result.outcome != "ok":
        return False
    if case.get("fn_name"):
        wanted = case["output"]
        wanted = json.loads(wanted) if isinstance(wanted, str) else wanted
        try:
            returned = json.loads(result.stdout.strip().rpartition("\n")[2])
        except ValueError:  # whatever it was, not what a function returned
            return False
        return bool(returned == wanted)
    return _lines(result.stdout) == _lines(str(case["output"]))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
