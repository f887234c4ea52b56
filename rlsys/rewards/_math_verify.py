"""The math-verify library as the mathematical rewards use it: without its own timeout.

That timeout is an alarm signal, which works only in main threads and fails silently in others. An expression that takes
too long is stopped by the deadline of the reward's process instead.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from rlsys.rewards import content
from rlsys.rewards._answers import answer_part, as_words, final_text, gold_answers, same_words

# It warns at the first call that its timeout is off, which is meant.
logging.getLogger("math_verify").setLevel(logging.ERROR)
# Texts that are no formula as a whole: with a formula marked in them, with words, or a number and its unit. Of the
# others those that the library would read wrongly: it looks for a last number, so of (1, 2) it would take 2.
PROSE = re.compile(r"\$|\\boxed|\\\(|\\\[|(?<![\\A-Za-z])[A-Za-z]{2,}|\d\s+[A-Za-z]|\n")
STRUCTURE = re.compile(r"[(\[{^\\]|,\s")


def parse(text: str, **options: Any) -> list[Any]:
    """Return the expressions that the library finds in `text`; `options` are those of its own `parse`."""
    import math_verify

    return math_verify.parse(text, parsing_timeout=None, **options)


def formula_of(answer: str, **options: Any) -> list[Any]:
    """Return the expressions of an answer that is one formula without marks, such as `(1, 2)`; else an empty list."""
    text = answer.strip().rstrip(".")
    is_formula = STRUCTURE.search(text) and not PROSE.search(text)
    return expressions(parse(f"${text}$", **options)) if is_formula else []


def expressions(parsed: list[Any]) -> list[Any]:
    """Return what the library could parse: it adds the raw text to it, and returns only that if it parsed nothing."""
    return parsed if any(not isinstance(part, str) for part in parsed) else []


def equal(gold: list[Any], guess: list[Any]) -> bool:
    """Return whether any of the `guess` expressions equals any of `gold`, the correct ones. The order matters."""
    import math_verify

    return bool(math_verify.verify(gold, guess, timeout_seconds=None))


def verdicts(completions: list[Any], solution: list[Any]) -> list[bool | None]:
    r"""Return whether each response's answer equals its solution's, decided as in open-r1's `accuracy`.

    Of the solution the first expression counts, LaTeX or plain; of a list of solutions any. The answer must be LaTeX
    without malformed operators, after words that announce an answer; a `\boxed{}` takes precedence. A solution that is
    a letter is compared as text. The verdict is None if the solution is missing or cannot be parsed.
    """
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    # open-r1's settings: a box first, then a formula after words that announce an answer, never one somewhere else.
    answers = LatexExtractionConfig(
        boxed_match_priority=0, try_extract_without_anchor=False, normalization_config=NormalizationConfig(units=True)
    )
    found: list[bool | None] = []
    for completion, expected in zip(completions, solution, strict=True):
        golds = gold_answers(expected)
        formulas, letters = [one for gold in golds for one in _solution(gold)], list(filter(None, map(_letter, golds)))
        if not formulas and not letters:
            found.append(None)
            continue
        text = content(completion)
        guess = parse(text, extraction_mode="first_match", extraction_config=[answers])
        final = final_text(answer_part(text))
        found.append(equal(formulas, guess) or any(same_words(final, letter) for letter in letters))
    return found


def is_solution(expected: Any, **_: Any) -> bool:
    """Return whether `verdicts` can compare responses with a value of the column `solution`."""
    return any(_solution(gold) or _letter(gold) for gold in gold_answers(expected))


def _solution(gold: str) -> list[Any]:
    first = {"extraction_mode": "first_match"}
    return [] if _letter(gold) else formula_of(gold, **first) or parse(gold, **first)


def _letter(gold: str) -> str:
    words = as_words(gold)
    return words if len(words) == 1 else ""
