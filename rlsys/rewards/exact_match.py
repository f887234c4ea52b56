"""1 where the response is the answer, else 0."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register


@register("exact_match")
def exact_match(completions: list[Any], answer: list[Any], *, strip: bool = True, **_: Any) -> Scores:
    """Compares text with the dataset's `answer` column; `strip` ignores white space at both ends."""
    pairs = [(content(completion), str(expected)) for completion, expected in zip(completions, answer, strict=True)]
    return [float(a.strip() == b.strip() if strip else a == b) for a, b in pairs]
