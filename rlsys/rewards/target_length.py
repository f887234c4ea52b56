"""Closeness of the response to a given length: the reward of TRL's tutorials."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register


@register("target_length")
def target_length(completions: list[Any], *, target: int = 50, **_: Any) -> Scores:
    """Score `-abs(target - number of characters)`."""
    return [-float(abs(target - len(content(completion)))) for completion in completions]
