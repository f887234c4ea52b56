"""What a step has to train on, and what was sampled beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.metrics.step import Metrics
from rlsys.scoring.combine import first_failure
from rlsys.types import Offender, Reward, RolloutGroup


@dataclass
class Collected:
    """A step's rollouts: everything that was sampled; `kept` indexes what is to be trained."""

    groups: list[RolloutGroup] = field(default_factory=list)
    rewards: list[list[Reward]] = field(default_factory=list)
    greedy_rewards: list[float | None] | None = None  # of each group's prompt, where the estimator asks for it
    ref_logprobs: list[Any] | None = None  # of each group a reference to a list of [L] float32; None of a rejected one
    kl_sums: list[list[float]] | None = None  # of each group, sampled policy to reference summed over each response
    logged: dict[str, float] = field(default_factory=dict)  # means of what reward functions noted
    kept: list[int] = field(default_factory=list)
    tries: float = 0.0  # prompts drawn over prompts asked for
    by_parts: bool = False  # a group's reward functions are compared one by one

    @property
    def trained(self) -> dict[int, int]:
        """Which of the groups is the how-many-eth of those that are trained."""
        return {group: number for number, group in enumerate(self.kept)}

    def offenders(self) -> list[Offender]:
        """Trajectories with a reward that is not finite, and of kept groups those with such a log-probability.

        A reward counts in any group: nobody knows whether its group has variance.
        """
        found = []
        for g, (group, rewards) in enumerate(zip(self.groups, self.rewards, strict=True)):
            for s, (summary, reward) in enumerate(zip(group.summaries, rewards, strict=True)):
                if reward.outcome == "not_finite":
                    found.append(Offender(g, s, "reward"))
                elif not summary.is_finite and g in self.kept:
                    found.append(Offender(g, s, "engine log-probability"))
        return found

    def lacks(self) -> str | None:
        """Why nothing of it can be trained: no valid reward, in any group, or no baseline; None where there is."""
        every = [reward for rewards in self.rewards for reward in rewards]
        if every and all(reward.total is None and reward.outcome != "not_finite" for reward in every):
            return f"no trajectory has a valid reward. First failure: {first_failure(self.rewards)}"
        baselines = self.greedy_rewards
        if self.kept and baselines is not None and all(baselines[group] is None for group in self.kept):
            return "no prompt has a valid reward for its greedy response, the baseline"
        return None

    def metrics(self) -> Metrics:
        """How many groups taught nothing, were left out, and how many prompts were drawn."""
        return {
            "groups/zero_variance": float(sum(not has_variance(rewards, self.by_parts) for rewards in self.rewards)),
            "groups/discarded": float(len(self.groups) - len(self.kept)),
            "groups/tries": self.tries,
        }


def has_variance(rewards: Sequence[Reward], by_parts: bool) -> bool:
    """Whether two valid rewards of a group differ, in their total or in any part. Equality decides, not a variance."""
    valid = [reward for reward in rewards if reward.total is not None]
    if not by_parts:
        return len({reward.total for reward in valid}) > 1
    return len({tuple((name, part.value) for name, part in sorted(reward.parts.items())) for reward in valid}) > 1
