"""open-r1's `format`: reasoning and answer between tags."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, register
from rlsys.rewards._think_answer import TAGS, format_scores


@register("format", tags=TAGS)
def format_(completions: list[Any], **_: Any) -> Scores:
    """Score 1 if the response is `<think>`, reasoning, `</think>`, `<answer>`, answer, `</answer>`, else 0.

    Each tag must be on a line of its own, and the response must begin with the first.
    """
    return format_scores(completions)
