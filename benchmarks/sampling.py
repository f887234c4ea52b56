"""Sampling on one engine of a pool, without scoring or scheduling."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rlsys.rollout.pool import RolloutPool
from rlsys.types import Prompt, Sampling


async def sample(
    pool: RolloutPool, prompts: Sequence[Prompt], sampling: Sampling, policy_version: int, first_group_id: int = 0
) -> list[list[int]]:
    """Sample every prompt on the first engine and return the responses' lengths, one list per prompt."""

    async def one(stream: int, prompt: Prompt) -> list[int]:
        lengths: list[int] = []
        engine = pool.engines[0]
        async with engine.sample(prompt, [sampling], stream=stream, policy_version=policy_version) as finished:
            async for part in finished:
                lengths += [each.summary.num_response_tokens for each in part]
        return lengths

    return list(await asyncio.gather(*(one(index, prompt) for index, prompt in enumerate(prompts, first_group_id))))
