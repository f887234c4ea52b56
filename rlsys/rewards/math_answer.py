"""Answers to mathematical problems, compared by the math-verify library."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register
from rlsys.rewards._answers import answer_part, as_words, final_text, gold_answers, same_words
from rlsys.rewards._math_verify import equal, expressions, formula_of, parse


def _is_gold(expected: Any, *, marker: str = "####", **_: Any) -> bool:
    return bool(_formulas(expected, marker) or _words(expected, marker))


@register("math_answer", imports=("math_verify",), judges_answers=True, usable=("answer", _is_gold))
def math_answer(completions: list[Any], answer: list[Any], *, marker: str = "####", **_: Any) -> Scores:
    r"""Score 1 if the response's final answer equals the correct one, 0 if it differs or there is none.

    It is looked for after the marker, else between the last `<answer>` tags, else in the whole response.
    Any of a list of correct answers counts. An answer in words, or the letter of a choice, is compared as text: `B`
    with what is there in `\boxed{...}`, follows words such as `The answer is`, or is all there is. Rows whose correct
    answer cannot be parsed are not applicable.

    Args:
        completions: the responses.
        answer: texts with the correct answer after `marker` (GSM8K's `#### 18`), or as a whole if they lack it; or
            lists of such texts.
        marker: the text before the final answer, in `answer` and in responses.
    """
    scores: Scores = []
    for completion, expected in zip(completions, answer, strict=True):
        formulas, words = _formulas(expected, marker), _words(expected, marker)
        if not formulas and not words:
            scores.append(None)
            continue
        part = answer_part(content(completion), marker)
        final = final_text(part)
        guess = formula_of(final) or parse(part)
        scores.append(float(equal(formulas, guess) or any(same_words(final, word) for word in words)))
    return scores


def _formulas(expected: Any, marker: str) -> list[Any]:
    # As formulas: bare LaTeX would not be found.
    return [one for gold in _golds(expected, marker) for one in expressions(parse(f"${gold}$"))]


def _words(expected: Any, marker: str) -> list[str]:
    return [words for gold in _golds(expected, marker) if (words := as_words(gold))]


def _golds(expected: Any, marker: str) -> list[str]:
    return [gold.rpartition(marker)[2].strip() for gold in gold_answers(expected)]
