"""open-r1's `tag_count`: a part of the reward for each tag of `format` that is in place."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register

TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")


@register("tag_count", tags="".join(TAGS))
def tag_count(completions: list[Any], **_: Any) -> Scores:
    """Score a quarter for each of the four tags that occurs exactly once, with the line breaks that belong to it."""
    return [sum(content(completion).count(tag) == 1 for tag in TAGS) / len(TAGS) for completion in completions]
