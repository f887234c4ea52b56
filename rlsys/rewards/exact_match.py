"""Exact match: the response must be the answer and nothing else."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register


@register("exact_match", judges_answers=True)
def exact_match(completions: list[Any], answer: list[Any], *, strip: bool = True, **_: Any) -> Scores:
    """Score 1 if the response equals the column `answer`, else 0. Rows without an answer are not applicable.

    Args:
        completions: the responses.
        answer: the expected answers.
        strip: whether white space at both ends is ignored.
    """

    def score(text: str, expected: Any) -> float | None:
        if expected is None:
            return None
        return float(text.strip() == str(expected).strip() if strip else text == str(expected))

    return [score(content(completion), expected) for completion, expected in zip(completions, answer, strict=True)]
