"""open-r1's `cosine`: correctness scaled by length along a cosine (arXiv:2502.03373, appendix C.1)."""

from __future__ import annotations

import math
from typing import Any

from rlsys.rewards import Scores, content, register
from rlsys.rewards._math_verify import is_solution, verdicts


def _check(*, max_len: int, **_: Any) -> None:
    """Check the options. Raises ValueError for a length that is not positive."""
    if max_len <= 0:
        raise ValueError(f"max_len={max_len} must be positive")


@register("cosine", imports=("math_verify",), check=_check, usable=("solution", is_solution))
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
    """Score along half a cosine over `max_len` characters: between two values for right answers, two for wrong ones.

    The score of a right answer falls from `max_value_correct` at length 0 to `min_value_correct` at `max_len`. That of
    a wrong one goes from `min_value_wrong` to `max_value_wrong`. The defaults are those of open-r1's recipe, which
    punish long wrong answers more; the paper punishes them less, with values such as -1 and -0.5.

    `accuracy` decides what is right. Two things differ from open-r1: above `max_len` the score stays at its value for
    `max_len`, where open-r1's cosine rises again; and rows whose solution cannot be parsed are not applicable, where
    open-r1 gives 1. TRL's version agrees with this one in both, but counts tokens.
    """
    _check(max_len=max_len)
    scores: Scores = []
    for completion, right in zip(completions, verdicts(completions, solution), strict=True):
        if right is None:
            scores.append(None)
            continue
        start, end = (max_value_correct, min_value_correct) if right else (min_value_wrong, max_value_wrong)
        # Half a cosine from `start` at length 0 to `end` at max_len: flat at both ends.
        progress = min(len(content(completion)) / max_len, 1.0)
        scores.append(end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0)
    return scores
