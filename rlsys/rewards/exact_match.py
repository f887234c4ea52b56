"""1 where the response is the answer, else 0."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register


@register("exact_match")
def exact_match(completions: list[Any], answer: list[Any], *, strip: bool = True, **_: Any) -> Scores:
    """Compares text with the dataset's `answer` column; `strip` ignores white space at both ends.

    A row without an answer is not applicable.
    """

    def score(text: str, expected: Any) -> float | None:
        if expected is None:
            return None
        return float(text.strip() == str(expected).strip() if strip else text == str(expected))

    return [score(content(completion), expected) for completion, expected in zip(completions, answer, strict=True)]
