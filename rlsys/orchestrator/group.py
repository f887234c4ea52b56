"""A group on its way from the prompt to its rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlsys.types import (
    Finished,
    GroupRequest,
    Prompt,
    Reward,
    RolloutGroup,
    Sampling,
    TrajectoryRef,
    TrajectorySummary,
)


class Owner(Protocol):
    """Who asked for a group, and hears what becomes of it."""

    def on_sampled(self, group: PendingGroup, sample: int) -> None:
        """One trajectory is generated."""

    def on_failed(self, group: PendingGroup, sample: int, error: str) -> None:
        """The engine could not sample it."""

    def on_scored(self, group: PendingGroup) -> None:
        """Every trajectory has its reward."""


@dataclass
class PendingGroup:
    """One prompt and what there is of its samples so far. `plan` says how each is drawn."""

    group_id: int
    prompt: Prompt
    plan: Sequence[Sampling]  # each adds its `samples_per_prompt` samples
    owner: Owner
    place: int = -1  # of the prompt in the stream
    attempt: int = 1
    found: dict[int, tuple[TrajectorySummary, TrajectoryRef]] = field(default_factory=dict)
    rewards: dict[int, Reward] = field(default_factory=dict)
    ref_logprobs: Any = None  # reference to a list of [L] float32
    kl_sums: list[float] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        return sum(sampling.samples_per_prompt for sampling in self.plan)

    @property
    def is_sampled(self) -> bool:
        return len(self.found) == self.num_samples

    @property
    def is_scored(self) -> bool:
        return len(self.rewards) == self.num_samples

    def requests(self) -> list[GroupRequest]:
        """What an engine is asked for."""
        made, first = [], 0
        for sampling in self.plan:
            prompt = self.prompt
            made.append(GroupRequest(self.group_id, self.attempt, prompt.index, prompt.token_ids, sampling, first))
            first += sampling.samples_per_prompt
        return made

    def add(self, finished: Finished, trajectory: TrajectoryRef) -> None:
        """One trajectory has been generated."""
        assert finished.summary is not None
        self.found[finished.sample] = finished.summary, trajectory

    def start_again(self, attempt: int) -> None:
        """Forget what the last attempt gave."""
        self.attempt = attempt
        self.found.clear()
        self.rewards.clear()

    def rollout(self) -> RolloutGroup:
        """The record of the first plan's samples."""
        found = [self.found[sample] for sample in range(self.plan[0].samples_per_prompt)]
        summaries, trajectories = zip(*found, strict=True)
        return RolloutGroup(self.group_id, self.prompt, trajectories, summaries)

    def rewards_of_first(self) -> list[Reward]:
        """Of the first plan's samples, in order."""
        return [self.rewards[sample] for sample in range(self.plan[0].samples_per_prompt)]
