"""Correctness scaled by length along a cosine (arXiv:2502.03373, appendix C.1), as open-r1 has it."""

from __future__ import annotations

import math
from typing import Any

from rlsys.rewards import Scores, content, register
from rlsys.rewards._math_verify import verdicts


def _check(*, max_len: int, **_: Any) -> None:
    """Raises ValueError for a length that nothing can be measured by."""
    if max_len <= 0:
        raise ValueError(f"max_len={max_len} must be positive")


@register("cosine", imports=("math_verify",), check=_check)
def cosine(
    completions: list[Any],
    solution: list[Any],
    *,
    min_value_wrong: float = 0.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    max_len: int = 1000,
    **_: Any,
) -> Scores:
    """Half a cosine over `max_len` characters, between two values for right answers and two for wrong ones.

    A right answer falls from `max_value_correct` at length 0 to `min_value_correct` at `max_len`. A wrong one goes from
    `min_value_wrong` to `max_value_wrong`: open-r1's recipe defaults, taken here, punish long wrong answers more; the
    paper's way round, which spares them, is -1 and -0.5 or the like.

    Right and wrong are `accuracy`'s. Two things differ from open-r1: beyond `max_len` the value at `max_len` holds,
    where its cosine climbs again, and a solution that cannot be parsed is not applicable, where it pays 1. TRL's
    version does both as here, but counts tokens.
    """
    _check(max_len=max_len)
    scores: Scores = []
    for completion, right in zip(completions, verdicts(completions, solution), strict=True):
        if right is None:
            scores.append(None)
            continue
        start, end = (max_value_correct, min_value_correct) if right else (min_value_wrong, max_value_wrong)
        progress = min(len(content(completion)) / max_len, 1.0)
        scores.append(end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0)
    return scores
