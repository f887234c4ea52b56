"""From scored groups to what the learner trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlsys.algorithms.advantages import AdvantageFn
from rlsys.errors import RlsysError
from rlsys.scoring.combine import first_failure
from rlsys.types import Experience, ExperienceRow, Reward, RolloutGroup


def make_experience(
    groups: Sequence[RolloutGroup],
    rewards: Sequence[Sequence[Reward]],
    ref_logprobs: tuple[Any, ...] | None,
    advantage: AdvantageFn,
    policy_version: int,
) -> Experience:
    """Advantages of every trajectory with a valid reward; the others are left out (and counted in the metrics).

    Raises RlsysError, with the first failure's detail, when no trajectory has a valid reward.
    """
    valid = [
        (g, s) for g, group_rewards in enumerate(rewards) for s, r in enumerate(group_rewards) if r.total is not None
    ]
    if not valid:
        raise RlsysError(f"no trajectory of this step has a valid reward. First failure: {first_failure(rewards)}")
    totals = torch.tensor([rewards[g][s].total for g, s in valid], dtype=torch.float64)
    members = torch.tensor([g for g, _ in valid], dtype=torch.int64)
    advantages = advantage(totals, members).tolist()
    rows = tuple(
        ExperienceRow(g, s, a, groups[g].summaries[s].num_tokens, groups[g].summaries[s].num_response_tokens)
        for (g, s), a in zip(valid, advantages, strict=True)
    )
    return Experience(rows, tuple(group.trajectories for group in groups), ref_logprobs, policy_version)
