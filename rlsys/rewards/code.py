"""Programs judged by their test cases, each run in a sandbox (open-r1's `code`)."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlsys.errors import nearest
from rlsys.rewards import Failed, Scores, content, register
from rlsys.sandbox.cases import LANGUAGES, fenced, judge
from rlsys.sandbox.program import Limits
from rlsys.sandbox.run import check


def check_code(*, language: str, **_: Any) -> None:
    """Raise ValueError for a language that nothing here runs, ConfigError where there can be no sandbox."""
    if language not in LANGUAGES:
        raise ValueError(f"language={language}: {nearest(language, LANGUAGES)}")
    check()


@register("code", check=check_code)
class Code:
    """The share of test cases that the last fenced block of a response passes; 0 without a block.

    The data's `verification_info` column holds `language` and `test_cases`, each with `input` and `output`. A row
    without it is not applicable; one whose cases cannot be run is an error, and not the response's fault.

    Args:
        language: of rows that do not name one.
        num_parallel: programs that run at once.
        wall_s, memory_mib, processes: limits of one program; reaching one fails the case.
    """

    def __init__(
        self,
        *,
        language: str = "python",
        num_parallel: int = 2,
        wall_s: float = 5.0,
        memory_mib: int = 512,
        processes: int = 16,
    ) -> None:
        self._language = language
        self._limits = Limits(wall_s=wall_s, cpu_s=int(wall_s) + 1, memory_mib=memory_mib, processes=processes)
        self._executor = ThreadPoolExecutor(num_parallel)

    def __call__(
        self, completions: list[Any], verification_info: list[Mapping[str, Any] | None], log_metric: Any, **_: Any
    ) -> Scores:
        """One share a completion."""
        return [
            self._score(content(completion), info, log_metric)
            for completion, info in zip(completions, verification_info, strict=True)
        ]

    def _score(self, text: str, info: Mapping[str, Any] | None, log_metric: Any) -> float | Failed | None:
        if not info or not info.get("test_cases"):
            return None
        language = str(info.get("language") or self._language)
        code = fenced(text, language)
        if code is None:
            return 0.0
        try:
            verdict = judge(code, language, info["test_cases"], self._limits, self._executor)
        except (ValueError, RuntimeError) as error:
            return Failed(str(error))
        for outcome in ("timeout", "memory", "processes", "output"):
            log_metric(f"code/{outcome}", sum(r.outcome == outcome for r in verdict.results) / len(verdict.results))
        return verdict.share
