"""Exact match: the response must be the answer and nothing else."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register
from rlsys.rewards._answers import texts_of


@register("exact_match", judges_answers=True)
def exact_match(completions: list[Any], answer: list[Any], *, strip: bool = True, **_: Any) -> Scores:
    """Score 1 if the response equals the column `answer`, else 0. Rows without an answer are not applicable.

    Of a list of answers, also as the JSON text of a list of texts, any counts.

    Args:
        completions: the responses.
        answer: the expected answers.
        strip: whether white space at both ends is ignored.
    """

    def score(text: str, expected: Any) -> float | None:
        golds = texts_of(expected)
        if not golds:
            return None
        return float(text.strip() in map(str.strip, golds) if strip else text in golds)

    return [score(content(completion), expected) for completion, expected in zip(completions, answer, strict=True)]
