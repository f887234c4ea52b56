"""A pattern that the response must match, and the answer that it must find there."""

from __future__ import annotations

import re
from typing import Any

from rlsys.rewards import Scores, content, register

FLAGS = {"a": re.ASCII, "i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE}


def _compiled(*, pattern: str, flags: str, **_: Any) -> re.Pattern[str]:
    """Raises ValueError for what is no regular expression, or no flag."""
    unknown = [letter for letter in flags if letter not in FLAGS]
    if unknown:
        raise ValueError(f"flags={flags!r}: '{unknown[0]}' is not one of the letters {', '.join(FLAGS)}")
    try:
        return re.compile(pattern, sum(FLAGS[letter] for letter in set(flags)))
    except (re.error, TypeError) as error:  # a number in YAML is no text
        raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from error


@register("regex", check=_compiled)
def regex(
    completions: list[Any],
    answer: list[Any] | None = None,
    *,
    pattern: str,
    flags: str = "",
    full_match: bool = False,
    **_: Any,
) -> Scores:
    """1 where the response matches `pattern` somewhere, or as a whole with `full_match`; else 0.

    A pattern with a group named `answer` asks for more where the data set has an `answer` column: the text of that
    group in the last match must be the row's answer, white space at both ends aside. Such a row without an answer is
    not applicable.

    Args:
        pattern: in Python's syntax, such as `Answer: (?P<answer>\\d+)`.
        flags: letters of Python's inline flags, any of `aimsx`.
        full_match: `pattern` must match the whole response.
    """
    expression = _compiled(pattern=pattern, flags=flags)
    compares = answer is not None and "answer" in expression.groupindex
    wanted = answer if answer is not None and compares else [None] * len(completions)
    scores: Scores = []
    for completion, expected in zip(completions, wanted, strict=True):
        if compares and expected is None:
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
    return found is not None and found.strip() == str(expected).strip()
