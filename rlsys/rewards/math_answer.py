"""Answers to mathematical problems, compared by the math-verify library."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register
from rlsys.rewards._math_verify import equal, parse


@register("math_answer", imports=("math_verify",), judges_answers=True)
def math_answer(completions: list[Any], answer: list[Any], *, marker: str = "####", **_: Any) -> Scores:
    """Score 1 if the response's final answer equals the correct one, 0 if it differs or there is none.

    Rows whose correct answer cannot be parsed are not applicable.

    Args:
        completions: the responses.
        answer: texts with the correct answer after `marker` (GSM8K's `#### 18`), or as a whole if they lack it.
        marker: the text before the final answer, in `answer` and in responses.
    """
    scores: Scores = []
    for completion, expected in zip(completions, answer, strict=True):
        correct = "" if expected is None else str(expected).rpartition(marker)[2].strip()
        gold = _expressions(parse(f"${correct}$"))  # as a formula: bare LaTeX would not be found
        if not gold:
            scores.append(None)
            continue
        guess = parse(content(completion).rpartition(marker)[2])
        scores.append(float(equal(gold, guess)))
    return scores


def _expressions(parsed: list[Any]) -> list[Any]:
    """Return what the library could parse: it adds the raw text to it, and returns only that if it parsed nothing."""
    return parsed if any(not isinstance(part, str) for part in parsed) else []
