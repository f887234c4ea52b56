"""Verifiable answers to mathematics, compared by the math-verify library."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register
from rlsys.rewards._math_verify import equal, parse


@register("math_answer", imports=("math_verify",))
def math_answer(completions: list[Any], answer: list[Any], *, marker: str = "####", **_: Any) -> Scores:
    """1 where the response's final answer equals the gold one, 0 where it differs or the response has none.

    The gold answer is what follows `marker` (GSM8K's `#### 18`), or the whole `answer` column without it. A gold
    answer that cannot be parsed is not applicable.
    """
    scores: Scores = []
    for completion, expected in zip(completions, answer, strict=True):
        wanted = "" if expected is None else str(expected).rpartition(marker)[2].strip()
        gold = _expressions(parse(f"${wanted}$"))
        if not gold:
            scores.append(None)
            continue
        guess = parse(content(completion).rpartition(marker)[2])
        scores.append(float(equal(gold, guess)))
    return scores


def _expressions(parsed: list[Any]) -> list[Any]:
    """What was understood: the library adds the raw text, alone when it understood nothing."""
    return parsed if any(not isinstance(part, str) for part in parsed) else []
