"""The groups of one step: everything that was sampled, and which of it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlsys.metrics.step import Metrics
from rlsys.scoring.combine import first_failure
from rlsys.types import NonFiniteTrajectory, Reward, ScoredGroup


@dataclass(frozen=True)
class StepBatch:
    """The groups of a step, ordered by id; `trained` are positions in `groups`."""

    policy_version: int  # the version that the step starts from
    groups: tuple[ScoredGroup, ...] = ()
    trained: tuple[int, ...] = ()
    num_drawn: int = 0  # prompts drawn since the last batch
    prompts_per_step: int = 1
    by_parts: bool = False  # a group's reward functions are compared one by one
    stage_s: Mapping[str, float] = field(default_factory=dict)  # seconds waited, by the stage waited for

    @property
    def trained_groups(self) -> list[ScoredGroup]:
        """The groups to train, in order."""
        return [self.groups[index] for index in self.trained]

    @property
    def rewards(self) -> list[tuple[Reward, ...]]:
        """The rewards of every group."""
        return [group.rewards for group in self.groups]

    @property
    def is_usable(self) -> bool:
        """Whether the step may be trained: every number is finite, and there is a valid reward."""
        return not self.nonfinite() and self.missing_rewards() is None

    def nonfinite(self) -> list[NonFiniteTrajectory]:
        """Return trajectories with a reward that is not finite, and those to train with such a log-probability.

        A reward counts in any group: whether its group has variance cannot be known.
        """
        found = []
        for g, group in enumerate(self.groups):
            for s, (summary, reward) in enumerate(zip(group.rollout.summaries, group.rewards, strict=True)):
                if reward.outcome == "not_finite":
                    found.append(NonFiniteTrajectory(g, s, "reward"))
                elif not summary.is_finite and g in self.trained:
                    found.append(NonFiniteTrajectory(g, s, "engine log-probability"))
        return found

    def missing_rewards(self) -> str | None:
        """Return why nothing can be trained for lack of a valid reward or baseline; None when there is one."""
        every = [reward for rewards in self.rewards for reward in rewards]
        # A step whose rewards are NaN or infinite belongs to the guard for those (`nonfinite`), not to this one.
        if every and all(reward.total is None and reward.outcome != "not_finite" for reward in every):
            return f"no trajectory has a valid reward. First failure: {first_failure(self.rewards)}"
        baselines = [group.baseline for group in self.trained_groups if group.baseline is not None]
        if baselines and all(baseline.total is None for baseline in baselines):
            return "no prompt has a valid reward for its greedy response, the baseline"
        return None

    def metrics(self) -> Metrics:
        """Return how many groups taught nothing or were left out, and how many prompts were drawn."""
        logged: dict[str, list[float]] = {}
        for group in self.groups:
            for name, value in group.logged.items():
                logged.setdefault(name, []).append(value)
        return {
            "groups/zero_variance": float(sum(not has_variance(r, self.by_parts) for r in self.rewards)),
            "groups/discarded": float(len(self.groups) - len(self.trained)),
            "groups/tries": self.num_drawn / self.prompts_per_step,
            **{f"reward/logged/{name}": sum(values) / len(values) for name, values in logged.items()},
        }


def has_variance(rewards: Sequence[Reward], by_parts: bool) -> bool:
    """Return whether two valid rewards of a group differ, in their total or in any part.

    Equality decides, not a variance: rounding must not make a group of equal rewards look useful.
    """
    valid = [reward for reward in rewards if reward.total is not None]
    if not by_parts:
        return len({reward.total for reward in valid}) > 1
    return len({tuple((name, part.value) for name, part in sorted(reward.parts.items())) for reward in valid}) > 1
