"""DAPO's length penalty (arXiv:2503.14476, equation 13)."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, register


def _check(*, max_response_tokens: int, buffer_tokens: int) -> None:
    if not 0 < buffer_tokens <= max_response_tokens:
        raise ValueError(
            f"buffer_tokens={buffer_tokens} must lie between 1 and max_response_tokens={max_response_tokens}"
        )


@register("soft_overlong_punishment", check=_check)
def soft_overlong_punishment(
    completion_ids: list[list[int]], *, max_response_tokens: int = 20480, buffer_tokens: int = 4096, **_: Any
) -> Scores:
    """0 up to `max - buffer` tokens, then down in a straight line to -1 at `max`, and -1 beyond.

    Args:
        max_response_tokens: the longest response wanted; not more than `rollout.max_response_tokens`, or nothing
            reaches it.
        buffer_tokens: where the slope is.
    """
    _check(max_response_tokens=max_response_tokens, buffer_tokens=buffer_tokens)
    start = max_response_tokens - buffer_tokens
    return [-min(max(len(ids) - start, 0) / buffer_tokens, 1.0) for ids in completion_ids]
