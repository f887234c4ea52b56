"""open-r1's `repetition_penalty`: a penalty for repeated n-grams (arXiv:2502.03373, appendix C.2)."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register


def _check(*, n_grams: int, max_penalty: float, **_: Any) -> None:
    """Check the options. Raises ValueError for those that would not penalise anything."""
    if n_grams < 1 or n_grams != int(n_grams):
        raise ValueError(f"n_grams={n_grams} must be a whole number, at least 1")
    if max_penalty > 0:
        raise ValueError(f"max_penalty={max_penalty} must be 0 or negative: it is the score of full repetition")


@register("repetition_penalty", check=_check, rests_at=0.0)
def repetition_penalty(completions: list[Any], *, n_grams: int = 3, max_penalty: float = -1.0, **_: Any) -> Scores:
    """Score `max_penalty` times the fraction of n-grams that occurred earlier in the response; 0 if none repeats.

    Words are separated by white space and compared in lower case. A response of fewer than `n_grams` words gets 0.
    open-r1's segmentation of Chinese is not implemented: a text without spaces is one word.
    """
    _check(n_grams=n_grams, max_penalty=max_penalty)
    return [max_penalty * _repeated(content(completion).lower().split(), n_grams) for completion in completions]


def _repeated(words: list[str], n: int) -> float:
    # "a b a b" with n = 2 has the n-grams ab, ba, ab: one of three is repeated.
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
