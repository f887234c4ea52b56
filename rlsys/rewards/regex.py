"""A regular expression that the response must match, and that may find the answer to compare."""

from __future__ import annotations

import re
from typing import Any

from rlsys.rewards import Scores, content, register
from rlsys.rewards._answers import texts_of

FLAGS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}


def _compiled(*, pattern: str, flags: str, **_: Any) -> re.Pattern[str]:
    """Return the compiled pattern. Raises ValueError for a bad pattern or an unknown flag."""
    unknown = [letter for letter in flags if letter not in FLAGS]
    if unknown:
        raise ValueError(f"flags={flags!r}: '{unknown[0]}' is unknown; use the letters {', '.join(FLAGS)}")
    try:
        return re.compile(pattern, sum(FLAGS[letter] for letter in set(flags)))
    except re.error as error:
        raise ValueError(f"pattern={pattern!r} is not a regular expression: {error}") from error


def _captures_answer(*, pattern: str, flags: str = "", **_: Any) -> bool:
    return "answer" in _compiled(pattern=pattern, flags=flags).groupindex


def _literals(*, pattern: str, **_: Any) -> str:
    return pattern.replace("\\", "")  # `\<tool\>` looks for `<tool>`


@register("regex", check=_compiled, judges_answers=_captures_answer, tags=_literals)
def regex(
    completions: list[Any],
    answer: list[Any] | None = None,
    *,
    pattern: str,
    flags: str = "",
    full_match: bool = False,
    **_: Any,
) -> Scores:
    r"""Score 1 if the response matches `pattern`, else 0.

    If the pattern has a group named `answer` and the data has a column `answer`, the group's text in the last match
    must also equal the row's answer, or one of a list, ignoring white space at both ends. Rows without an answer are
    then not applicable.

    Args:
        completions: the responses.
        answer: the expected answers.
        pattern: a regular expression in Python's syntax, such as `Answer: (?P<answer>\d+)`.
        flags: letters of Python's inline flags, any of `aimsx`.
        full_match: whether the pattern must match the whole response instead of some part.
    """
    expression = _compiled(pattern=pattern, flags=flags)
    # Only a pattern that captures an answer is compared with the data's answers.
    compares = answer is not None and "answer" in expression.groupindex
    wanted = answer if answer is not None and compares else [None] * len(completions)
    scores: Scores = []
    for completion, expected in zip(completions, wanted, strict=True):
        if compares and not texts_of(expected):
            scores.append(None)
            continue
        text = content(completion)
        found = expression.fullmatch(text) if full_match else _last(expression, text)
        scores.append(float(found is not None and (not compares or _same(found["answer"], expected))))
    return scores


def _last(expression: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for match in expression.finditer(text):
        found = match
    return found


def _same(found: str | None, expected: Any) -> bool:
    return found is not None and found.strip() in map(str.strip, texts_of(expected))
