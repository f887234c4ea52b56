"""What the mathematical rewards share: the math-verify library with its alarm off.

The alarm works in main threads only and fails silently elsewhere. A runaway expression is the business of the deadline
that the reward's process has.
"""

from __future__ import annotations

from typing import Any

from rlsys.rewards import content


def parse(text: str, **how: Any) -> list[Any]:
    """The expressions that the library finds in `text`; `how` are options of its own `parse`."""
    import math_verify

    return math_verify.parse(text, parsing_timeout=None, **how)


def equal(gold: list[Any], guess: list[Any]) -> bool:
    """Whether any expression of one is any of the other. The order matters: the library reads `gold` as the answer."""
    import math_verify

    return bool(math_verify.verify(gold, guess, timeout_seconds=None))


def verdicts(completions: list[Any], solution: list[Any]) -> list[bool | None]:
    """Whether each response's answer is its solution's, as open-r1's `accuracy` decides it.

    The solution's first LaTeX or plain expression counts. The answer must be LaTeX without malformed operators and
    stand where an answer is announced; a `\\boxed{}` comes first. None stands for a solution that is missing or cannot
    be parsed.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

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
