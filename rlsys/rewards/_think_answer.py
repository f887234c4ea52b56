"""The format that open-r1's system prompt asks for: reasoning, then an answer, each between tags on their own lines."""

from __future__ import annotations

import re
from typing import Any

from rlsys.rewards import Scores, content

TAGS = "<think> </think> <answer> </answer>"
ANYTHING = ".*?"


def format_scores(completions: list[Any], answer: str = ANYTHING) -> Scores:
    """Score 1 for a response that has the format and whose answer matches the regular expression `answer`, else 0.

    The response must begin with `<think>`. As in open-r1, more lines may follow the line that `</answer>` ends.
    """
    pattern = re.compile(rf"<think>\n.*?\n</think>\n<answer>\n{answer}\n</answer>$", re.DOTALL | re.MULTILINE)
    return [float(pattern.match(content(completion)) is not None) for completion in completions]
