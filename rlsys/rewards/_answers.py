"""Correct answers as data sets hold them, and the final answer of a response as text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

# What announces a final answer, up to the end of its line; and what may stand around an answer that is text.
ANNOUNCED = re.compile(r"\banswer(?:[ \t]+is\b:?|[ \t]*:)[ \t*]*(\S.*)$", re.IGNORECASE | re.MULTILINE)
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
STYLED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
AROUND = " \t\n$()[]{}*_`'\":.,;!"
CHOICE = re.compile(r"\(?([A-Za-z])[).:]+(?:\s.*)?", re.DOTALL)  # "(B)." and "B) Paris", but not "A cat"


def gold_answers(expected: Any) -> list[str]:
    """Return the answers of which any counts: of a value, a list of values, or the JSON text of a list of texts.

    `[1, 2]` as text is one answer, an interval; a list of Python or JSON that holds texts is several. None, and an
    empty list, are no answer at all.
    """
    if isinstance(expected, str) and expected.lstrip().startswith("["):
        try:
            found = json.loads(expected)
        except ValueError:
            found = None
        if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
            expected = found
    if not isinstance(expected, str) and isinstance(expected, Sequence):
        return [str(one) for one in expected if one is not None]
    return [] if expected is None else [str(expected)]


def texts_of(expected: Any) -> list[str]:
    """Return the texts of which any counts: those of `gold_answers`, and a text as it stands."""
    return [*gold_answers(expected), *([expected] if isinstance(expected, str) else [])]


def as_words(answer: str) -> str:
    """Return an answer that is text, without what stands around it; "" for one with digits or formulas."""
    text = STYLED.sub(r"\1", answer).strip(AROUND)
    return "" if not re.search(r"[^\W\d_]", text) or re.search(r"[\d\\=+*/^<>]", text) else " ".join(text.split())


def answer_part(response: str, marker: str = "") -> str:
    """Return what follows the last `marker`, else what stands between the last `<answer>` tags, else the response."""
    if marker and marker in response:
        return response.rpartition(marker)[2]
    return str((TAGGED.findall(response) or [response])[-1])


def final_text(part: str) -> str:
    """Return the final answer as it is written: in the last box, else after words such as `the answer is`, else all.

    Args:
        part: what `answer_part` returns.
    """
    for expression in (BOXED, ANNOUNCED):
        found = expression.findall(part)
        if found:
            return str(found[-1]).strip()
    return part.strip()


def same_words(guess: str, gold: str) -> bool:
    """Return whether an answer is the same text, or begins with the same letter of a choice: `(B) Paris` for `B`."""
    if as_words(guess).casefold() == gold.casefold():
        return True
    choice = CHOICE.fullmatch(STYLED.sub(r"\1", guess).strip(" $*"))
    return choice is not None and choice[1].casefold() == gold.casefold()
