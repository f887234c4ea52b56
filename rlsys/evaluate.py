"""Greedy answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.config import Config
from rlsys.rollout.pool import RolloutPool
from rlsys.scoring.pool import RewardPool
from rlsys.types import Prompt, Reward, RolloutGroup, Sampling


@dataclass(frozen=True)
class Evaluation:
    """`accuracy` is the share of prompts whose total reward reached `eval.correct_at`; failed rewards count against."""

    accuracy: float
    reward_mean: float | None
    groups: list[RolloutGroup]
    rewards: list[list[Reward]]


def evaluate(
    rollout: RolloutPool, scoring: RewardPool, prompts: Sequence[Prompt], config: Config, policy_version: int
) -> Evaluation:
    """One greedy response a prompt, scored like any other trajectory."""
    limit = config.eval.max_response_tokens or config.rollout.max_response_tokens
    sampling = Sampling(temperature=0.0, max_response_tokens=limit, samples_per_prompt=1)
    groups = rollout.generate(prompts, sampling, policy_version)
    rewards, _ = scoring.score(groups, policy_version)
    totals = [group[0].total for group in rewards]
    correct = [total is not None and total >= config.eval.correct_at for total in totals]
    valid = [total for total in totals if total is not None]
    return Evaluation(float(np.mean(correct)), float(np.mean(valid)) if valid else None, groups, rewards)
