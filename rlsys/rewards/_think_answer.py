"""The layout that open-r1's system prompt asks for: reasoning, then an answer, each between tags on their own lines."""

from __future__ import annotations

import re
from typing import Any

from rlsys.rewards import Scores, content

ANYTHING = ".*?"


def laid_out(completions: list[Any], answer: str = ANYTHING) -> Scores:
    """1 for a response that has the layout and whose answer matches `answer`, a regular expression; else 0.

    The response must begin with `<think>`. As in open-r1, text may follow the line that `</answer>` ends.
    """
    layout = re.compile(rf"<think>\n.*?\n</think>\n<answer>\n{answer}\n</answer>$", re.DOTALL | re.MULTILINE)
    return [float(layout.match(content(completion)) is not None) for completion in completions]
