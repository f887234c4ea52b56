"""The classic tutorial's reward: be as long as asked for."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, content, register


@register("target_length")
def target_length(completions: list[Any], *, target: int = 50, **_: Any) -> Scores:
    """`-abs(target - characters)`."""
    return [-float(abs(target - len(content(completion)))) for completion in completions]
