"""DAPO's penalty for long responses (arXiv:2503.14476, equation 13)."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, register


def _check(*, max_response_tokens: int, buffer_tokens: int) -> None:
    if not 0 < buffer_tokens <= max_response_tokens:
        raise ValueError(
            f"buffer_tokens={buffer_tokens} must be between 1 and max_response_tokens={max_response_tokens}"
        )


@register("soft_overlong_punishment", check=_check, rests_at=0.0)
def soft_overlong_punishment(
    completion_ids: list[list[int]], *, max_response_tokens: int = 20480, buffer_tokens: int = 4096, **_: Any
) -> Scores:
    """Score 0 up to `max_response_tokens - buffer_tokens`, then linearly down to -1 at `max_response_tokens`.

    Args:
        completion_ids: the tokens of the responses.
        max_response_tokens: the longest response wanted; at most `rollout.max_response_tokens`, or no response reaches
            it.
        buffer_tokens: the number of tokens over which the score falls.
    """
    _check(max_response_tokens=max_response_tokens, buffer_tokens=buffer_tokens)
    start = max_response_tokens - buffer_tokens  # where the score begins to fall
    return [-min(max(len(ids) - start, 0) / buffer_tokens, 1.0) for ids in completion_ids]
