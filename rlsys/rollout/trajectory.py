"""Conversion of an engine's response to a trajectory and its summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlsys.errors import WorkerError
from rlsys.types import Trajectory, TrajectorySummary, VersionSpan


@dataclass(frozen=True)
class Response:
    """What the engine sampled for one request; `engine/whole_responses.py` makes it, and explains epochs."""

    request_id: str
    token_ids: np.ndarray  # [T] int32
    logprobs: np.ndarray  # [T] float32, of the sampled tokens
    epochs: tuple[tuple[int, int], ...]  # (epoch, number of tokens), in the order of tokens
    finish_reason: str  # "stop" and "length" are whole responses, anything else is not
    prompt_logprobs: np.ndarray | None = None  # [L_prompt - 1] float32 from the second token on, if asked for


def trajectory_of(prompt_ids: np.ndarray, response: Response, versions: Sequence[int], engine: int) -> Trajectory:
    """Return prompt and response with everything that the engine knows about their tokens.

    Args:
        prompt_ids: [L_prompt] int32.
        response: what the engine sampled.
        versions: the policy version of every epoch.
        engine: index of the engine.

    Raises:
        WorkerError: the response is not whole.
    """
    if response.finish_reason not in ("length", "stop"):
        raise WorkerError(f"the engine ended the request with '{response.finish_reason}'")
    reason: Literal["length", "stop"] = "length" if response.finish_reason == "length" else "stop"
    start, num_tokens, num_logprobs = len(prompt_ids), len(response.token_ids), len(response.logprobs)
    spans = _spans(response.epochs, versions, start)
    num_credited = sum(span.end - span.start for span in spans)
    if not num_tokens == num_logprobs == num_credited:
        raise WorkerError(
            f"{num_tokens} tokens but {num_logprobs} log-probabilities, and policy versions of {num_credited}"
        )
    return Trajectory(
        token_ids=np.concatenate([prompt_ids, response.token_ids]),
        loss_mask=np.arange(start + num_tokens) >= start,
        behavior_logprobs=np.concatenate([np.zeros(start, dtype=np.float32), response.logprobs]),
        versions=spans,
        finish_reason=reason,
        engine=engine,
    )


def summary_of(trajectory: Trajectory, started_s: float, finished_s: float) -> TrajectorySummary:
    """Return what the driver gets to know."""
    return TrajectorySummary(
        num_tokens=trajectory.num_tokens,
        num_response_tokens=int(trajectory.loss_mask.sum()),
        finish_reason=trajectory.finish_reason,
        policy_version=min(span.policy_version for span in trajectory.versions),
        engine=trajectory.engine,
        is_finite=bool(np.isfinite(trajectory.behavior_logprobs).all()),
        started_s=started_s,
        finished_s=finished_s,
    )


def _spans(epochs: Sequence[tuple[int, int]], versions: Sequence[int], start: int) -> tuple[VersionSpan, ...]:
    spans = []
    for epoch, num_tokens in epochs:
        spans.append(VersionSpan(versions[epoch], start, start + num_tokens))
        start += num_tokens
    return tuple(spans)
