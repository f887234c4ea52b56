"""Prompts through one engine of a pool, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlsys.orchestrator.sampler import POLL_S
from rlsys.rollout.pool import RolloutPool
from rlsys.runtime.calls import Calls
from rlsys.types import GroupRequest, Prompt, Sampling

DEADLINE_S = 600.0


def sample(
    calls: Calls,
    pool: RolloutPool,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    policy_version: int,
    linger_s: float,
    first_group_id: int = 0,
) -> list[list[int]]:
    """Wait for every response of every prompt; returns their lengths, a list a prompt."""
    requests = [GroupRequest(i, 1, p.index, p.token_ids, sampling) for i, p in enumerate(prompts, first_group_id)]
    lengths: list[list[int]] = [[] for _ in prompts]

    def wait(call: Any) -> Any:
        return calls.gather({pool.names[0]: call}, what="rollout", deadline_s=DEADLINE_S)[pool.names[0]]

    submitted = pool.begin_submit(0, requests, policy_version)
    while sum(map(len, lengths)) < len(prompts) * sampling.samples_per_prompt:
        told, _ = pool.begin_finished(0, POLL_S, linger_s)
        for finished in wait(told):
            if finished.summary is None:
                raise RuntimeError(f"prompt {finished.group_id}: {finished.error}")
            lengths[finished.group_id - first_group_id].append(finished.summary.num_response_tokens)
    wait(submitted)
    return lengths
