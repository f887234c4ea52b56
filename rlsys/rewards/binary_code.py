"""open-r1's `binary_code`: programs that pass all of their test cases."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Failed, Scores, register
from rlsys.rewards.code import USABLE, Code, check_code

THRESHOLD = 0.99  # all cases passed: the fraction is a floating-point number


@register("binary_code", check=check_code, deadline_s=300.0, judges_answers=True, usable=USABLE)
class BinaryCode(Code):
    """A score of 1 for a response to which `code` gives more than 0.99, else 0; the same options and columns."""

    def __call__(
        self, completions: list[Any], verification_info: list[Any], deadline_s: float, log_metric: Any, **_: Any
    ) -> Scores:
        """Return one score per completion."""
        scores = super().__call__(completions, verification_info, deadline_s, log_metric)
        return [score if score is None or isinstance(score, Failed) else float(score > THRESHOLD) for score in scores]
