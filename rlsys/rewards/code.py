"""open-r1's `code`: programs judged by test cases, each run in a sandbox."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlsys.rewards import Failed, Scores, content, register
from rlsys.runtime.processes import adopt_orphans
from rlsys.sandbox.cases import OutOfTimeError, Verdict, check_language, fenced, judge
from rlsys.sandbox.program import Limits
from rlsys.sandbox.run import check_sandbox

MARGIN_S = 5.0  # how long before the process is killed judging stops


def check_code(*, language: str, **_: Any) -> None:
    """Check that programs in `language` can be run here. Raises ValueError or, without sandboxes, ConfigError."""
    check_sandbox()
    check_language(language)


def verification(info: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    """Return `verification_info` as a mapping, with its test cases as a list; empty without one.

    Raises:
        ValueError: it is, or its test cases are, something else, or text that is not JSON.
    """
    found = _from_json(info) or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"verification_info is {str(info)[:100]!r}; it must be a mapping with 'test_cases'")
    cases = _from_json(found.get("test_cases")) or []
    if isinstance(cases, Mapping) and all(isinstance(values, list) for values in cases.values()):
        # As `datasets` stores a list of mappings in some versions: a mapping of lists.
        cases = [dict(zip(cases, values, strict=True)) for values in zip(*cases.values(), strict=True)]
    if not isinstance(cases, Sequence) or not all(isinstance(case, Mapping) for case in cases):
        raise ValueError(f"test_cases are {str(cases)[:100]!r}; they must be a list of mappings")
    return {**found, "test_cases": cases}


def _from_json(value: Any) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value if not isinstance(value, str) else None
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"verification_info is text that is not JSON ({error}): {value[:100]!r}") from error


def _can_verify(info: Any, **_: Any) -> bool:
    try:
        return bool(verification(info)["test_cases"])
    except (ValueError, KeyError):
        return False


USABLE = ("verification_info", _can_verify)


@register("code", check=check_code, deadline_s=300.0, judges_answers=True, usable=USABLE)
class Code:
    """The fraction of test cases that the last fenced code block of a response passes; 0 without a block.

    The column `verification_info` holds `language` and `test_cases`, each with `input` and `output`, as a mapping or as
    its JSON text. Rows without it are not applicable. A row whose cases cannot be run is an error, because that is not
    the response's fault.

    Args:
        language: language of rows that do not name one.
        num_parallel: responses that are judged at the same time.
        wall_s: seconds that a program may run; one that takes longer fails the case.
        memory_mib: memory that a program may use; one that needs more fails the case.
    """

    def __init__(
        self, *, language: str = "python", num_parallel: int = 2, wall_s: float = 5.0, memory_mib: int = 512
    ) -> None:
        self._language = language
        # The limit of CPU time is in whole seconds and counts all threads. With this value a program of one thread
        # always meets `wall_s` first.
        self._limits = Limits(wall_s=wall_s, cpu_s=int(wall_s) + 1, memory_mib=memory_mib)
        self._executor = ThreadPoolExecutor(num_parallel)
        adopt_orphans()  # what a killed sandbox leaves becomes a child of this process, and `sandbox.run` waits for it

    def __call__(
        self,
        completions: list[Any],
        verification_info: list[Mapping[str, Any] | str | None],
        deadline_s: float,
        log_metric: Any,
        **_: Any,
    ) -> Scores:
        """Return one score per completion; rows for which no time was left are timeouts."""
        # Judging stops by itself before the process is killed: then only the rows that are left are lost.
        end = time.monotonic() + deadline_s - MARGIN_S
        texts = [content(completion) for completion in completions]
        calls = [self._executor.submit(self._judged, *row, end) for row in zip(texts, verification_info, strict=True)]
        found = [call.result() for call in calls]
        results = [result for verdict in found if isinstance(verdict, Verdict) for result in verdict.results]
        # How often a limit decided: responses that are slow or large, or limits that are too tight.
        for outcome in ("timeout", "memory", "processes", "output"):
            if results:
                log_metric(f"code/{outcome}", sum(result.outcome == outcome for result in results) / len(results))
        return [verdict.passed_fraction if isinstance(verdict, Verdict) else verdict for verdict in found]

    def _judged(self, text: str, given: Mapping[str, Any] | str | None, end: float) -> float | Verdict | Failed | None:
        try:
            info = verification(given)
        except ValueError as error:
            return Failed(str(error))
        if not info.get("test_cases"):
            return None
        language = str(info.get("language") or self._language)
        code = fenced(text, language)
        if code is None:  # the response's fault
            return 0.0
        try:
            return judge(code, language, info["test_cases"], self._limits, end)
        except OutOfTimeError:
            return Failed("no time was left to run all of its test cases", "timeout")
        except (ValueError, RuntimeError) as error:
            return Failed(str(error))
