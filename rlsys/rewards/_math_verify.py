"""The math-verify library as the mathematical rewards use it: without its own timeout.

That timeout is an alarm signal, which works only in main threads and fails silently in others. An expression that takes
too long is stopped by the deadline of the reward's process instead.
"""

from __future__ import annotations

from typing import Any

from rlsys.rewards import content


def parse(text: str, **options: Any) -> list[Any]:
    """Return the expressions that the library finds in `text`; `options` are those of its own `parse`."""
    import math_verify

    return math_verify.parse(text, parsing_timeout=None, **options)


def equal(gold: list[Any], guess: list[Any]) -> bool:
    """Return whether any of the `guess` expressions equals any of `gold`, the correct ones. The order matters."""
    import math_verify

    return bool(math_verify.verify(gold, guess, timeout_seconds=None))


def verdicts(completions: list[Any], solution: list[Any]) -> list[bool | None]:
    r"""Return whether each response's answer equals its solution's, decided as in open-r1's `accuracy`.

    Of the solution the first expression counts, LaTeX or plain. The answer must be LaTeX without malformed operators,
    after words that announce an answer; a `\boxed{}` takes precedence. The verdict is None if the solution is missing
    or cannot be parsed.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    # open-r1's settings: a box first, then a formula after words that announce an answer, never one somewhere else.
    answers = LatexExtractionConfig(
        boxed_match_priority=0, try_extract_without_anchor=False, normalization_config=NormalizationConfig(units=True)
    )
    found: list[bool | None] = []
    for completion, expected in zip(completions, solution, strict=True):
        gold = [] if expected is None else parse(str(expected), extraction_mode="first_match")
        if not gold:
            found.append(None)
            continue
        guess = parse(content(completion), extraction_mode="first_match", extraction_config=[answers])
        found.append(equal(gold, guess))
    return found
