"""Hand-made records of the loop, with only what a test cares about spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlsys.types import (
    FinishReason,
    Outcome,
    Prompt,
    Reward,
    RewardPart,
    RolloutGroup,
    ScoredGroup,
    TextRef,
    TrajectoryRef,
    TrajectorySummary,
)


def summary(
    response: int,
    *,
    prompt: int = 3,
    finish: FinishReason = "stop",
    version: int = 0,
    engine: int = 0,
    finite: bool = True,
) -> TrajectorySummary:
    """A trajectory of `prompt + response` tokens."""
    return TrajectorySummary(prompt + response, response, finish, version, engine, finite)


def group(group_id: int, summaries: Sequence[TrajectorySummary], text: str = "1+1=") -> RolloutGroup:
    """The trajectories of one prompt; their token arrays are not looked at."""
    prompt = Prompt(index=10 + group_id, text=text, token_ids=np.array([1, 2, 3], dtype=np.int32))
    pointers = tuple(TrajectoryRef(f"arrays of group {group_id}", index) for index in range(len(summaries)))
    return RolloutGroup(group_id, prompt, pointers, tuple(summaries))


def reward(value: float | None, outcome: Outcome = "ok", *, label: str = "exact_match", detail: str = "") -> Reward:
    """A reward of a single part with weight 1."""
    return Reward(value, {label: RewardPart(value, outcome, detail)}, outcome, response=TextRef(["1", "2"], 1))


def scored(rollout: RolloutGroup, rewards: Sequence[Reward], **facts: Any) -> ScoredGroup:
    """A group with its rewards, and perhaps a baseline, reference scores and what was logged."""
    return ScoredGroup(rollout, tuple(rewards), **facts)


async def text_of(ref: TextRef | None) -> str:
    """Return the text as the scoring workers' pool does, from a chunk that is no reference."""
    return "" if ref is None else ref.chunk[ref.index]
