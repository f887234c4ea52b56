"""open-r1's format: reasoning and answer between tags."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, register
from rlsys.rewards._think_answer import laid_out


@register("format")
def format_(completions: list[Any], **_: Any) -> Scores:
    """1 where the response reads `<think>`, reasoning, `</think>`, `<answer>`, answer, `</answer>`; else 0.

    Each tag stands on a line of its own and the response begins with the first.
    """
    return laid_out(completions)
