"""Conversion of an engine's output to a trajectory and its summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlsys.errors import WorkerError
from rlsys.types import Trajectory, TrajectorySummary, VersionSpan

# Keys in a response's `kv_transfer_params`, the one free-form field that vLLM carries from its scheduler to the front
# end. vLLM's own use of it, moving caches between engines, is not configured here.
LOGPROBS = "rlsys_logprobs"  # log-probabilities of the sampled tokens, the bytes of [tokens] float32
EPOCHS = "rlsys_epochs"  # [[epoch, number of tokens], ...]; engine/whole_responses.py explains epochs


def trajectory_of(prompt_ids: np.ndarray, answer: Any, versions: Sequence[int], engine: int) -> Trajectory:
    """Return prompt and response with everything that the engine knows about their tokens.

    Args:
        prompt_ids: [L_prompt] int32.
        answer: vLLM's final `RequestOutput` of a request for one sample.
        versions: the policy version of every epoch.
        engine: index of the engine.

    Raises:
        WorkerError: the answer is not whole.
    """
    [sample] = answer.outputs
    if sample.finish_reason not in ("length", "stop"):
        raise WorkerError(f"the engine ended the request with '{sample.finish_reason}'")
    response = np.asarray(sample.token_ids, dtype=np.int32)
    logprobs = np.frombuffer(answer.kv_transfer_params[LOGPROBS], dtype=np.float32)
    start = len(prompt_ids)
    spans = _spans(answer.kv_transfer_params[EPOCHS], versions, start)
    num_credited = sum(span.end - span.start for span in spans)
    if not len(response) == len(logprobs) == num_credited:
        raise WorkerError(
            f"{len(response)} tokens but {len(logprobs)} log-probabilities, and policy versions of {num_credited}"
        )
    return Trajectory(
        token_ids=np.concatenate([prompt_ids, response]),
        loss_mask=np.arange(start + len(response)) >= start,
        behavior_logprobs=np.concatenate([np.zeros(start, dtype=np.float32), logprobs]),
        versions=spans,
        finish_reason=sample.finish_reason,
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


def _spans(epochs: Sequence[Sequence[int]], versions: Sequence[int], start: int) -> tuple[VersionSpan, ...]:
    spans = []
    for epoch, num_tokens in epochs:
        spans.append(VersionSpan(versions[epoch], start, start + num_tokens))
        start += num_tokens
    return tuple(spans)


def prompt_logprobs(answer: Any) -> np.ndarray:
    """Return [L - 1] float32 prompt log-probabilities of a final `RequestOutput`, from the second token on."""
    flat = answer.prompt_logprobs
    return np.asarray([flat.logprobs[start] for start in flat.start_indices[1:]], dtype=np.float32)
