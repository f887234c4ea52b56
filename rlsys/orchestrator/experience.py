"""From scored groups to what the learner trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlsys.algorithms import advantages, aggregation
from rlsys.algorithms.advantages import AdvantageInputs
from rlsys.config.schema import Config
from rlsys.rewards.entry import labelled
from rlsys.types import Coefficients, Experience, ExperienceRow, Reward, RolloutGroup


@dataclass(frozen=True)
class Scored:
    """The groups of a step that are to be trained, with everything that decides how much each trajectory counts."""

    groups: Sequence[RolloutGroup]
    rewards: Sequence[Sequence[Reward]]
    greedy_rewards: Sequence[float | None] | None = None  # one a group
    ref_logprobs: tuple[Any, ...] | None = None  # one reference a group
    kl_sums: Sequence[Sequence[float]] | None = None  # sampled policy to reference, summed over each response
    estimates: tuple[Any, ...] | None = None  # one reference a group


class CreditAssignment:
    """Advantages and weights of trajectories, as the configuration asks for them."""

    def __init__(self, config: Config) -> None:
        algorithm = config.algorithm
        self._advantage = advantages.registry.component(algorithm.advantage)
        self._aggregate = aggregation.registry.component(algorithm.aggregation)
        self._labels = {label: float(spec.get("weight", 1.0)) for label, spec in labelled(config.rewards)}
        self._kl_in_reward = algorithm.kl.coef > 0 and algorithm.kl.apply_to == "reward"
        self._mask_truncated = algorithm.groups.mask_truncated
        self._num_minibatches = config.train.minibatches_per_step

    def __call__(self, scored: Scored, policy_version: int, coefficients: Coefficients) -> Experience:
        """The step's experience; empty where there is no group to train.

        Trajectories without a valid reward, or baseline, are left out (and counted in the metrics).
        """
        valid = [
            (g, s)
            for g, group in enumerate(scored.rewards)
            for s, reward in enumerate(group)
            if reward.total is not None and (scored.greedy_rewards is None or scored.greedy_rewards[g] is not None)
        ]
        values = [0.0] * len(valid)
        if scored.estimates is None and valid:
            values = self._advantage(self._inputs(scored, valid, coefficients)).tolist()
        return Experience(
            minibatches=self._minibatches(scored.groups, valid, values),
            trajectories=tuple(group.trajectories for group in scored.groups),
            ref_logprobs=scored.ref_logprobs,
            estimates=scored.estimates,
            policy_version=policy_version,
            coefficients=coefficients,
        )

    def _inputs(self, scored: Scored, valid: Sequence[tuple[int, int]], coefficients: Coefficients) -> AdvantageInputs:
        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64)

        picked = [scored.rewards[g][s] for g, s in valid]
        totals = column([float(reward.total or 0.0) for reward in picked])
        if self._kl_in_reward and scored.kl_sums is not None:
            totals = totals - coefficients.kl * column([scored.kl_sums[g][s] for g, s in valid])
        greedy = scored.greedy_rewards
        lengths = [scored.groups[g].summaries[s].num_response_tokens for g, s in valid]
        parts = [[_value(reward, label) for label in self._labels] for reward in picked]
        return AdvantageInputs(
            rewards=totals,
            groups=torch.tensor([g for g, _ in valid], dtype=torch.int64),
            lengths=torch.tensor(lengths, dtype=torch.int64),
            parts=torch.tensor(parts, dtype=torch.float64),
            part_weights=column(list(self._labels.values())),
            greedy_rewards=column([float(greedy[g] or 0.0) for g, _ in valid]) if greedy is not None else None,
        )

    def _minibatches(
        self, groups: Sequence[RolloutGroup], valid: Sequence[tuple[int, int]], values: Sequence[float]
    ) -> tuple[tuple[ExperienceRow, ...], ...]:
        """Whole groups, in order, in parts of nearly equal number; the aggregation's weights are each part's own."""
        present = sorted({g for g, _ in valid})
        part_of = {g: place * self._num_minibatches // len(present) for place, g in enumerate(present)}
        minibatches = []
        for part in range(self._num_minibatches):
            chosen = [i for i, (g, _) in enumerate(valid) if part_of[g] == part]
            if not chosen:
                continue
            lengths = [self._trained(groups[valid[i][0]], valid[i][1]) for i in chosen]
            weights = self._aggregate(torch.tensor(lengths), torch.tensor([valid[i][0] for i in chosen])).tolist()
            rows = tuple(
                ExperienceRow(i, *valid[i], values[i], weight, _num_tokens(groups, valid[i]), length)
                for i, weight, length in zip(chosen, weights, lengths, strict=True)
                if length > 0
            )
            if rows:
                minibatches.append(rows)
        return tuple(minibatches)

    def _trained(self, group: RolloutGroup, sample: int) -> int:
        """Trained tokens of a trajectory: none of a truncated one where those are masked."""
        summary = group.summaries[sample]
        masked = self._mask_truncated and summary.finish_reason == "length"
        return 0 if masked else summary.num_response_tokens


def _num_tokens(groups: Sequence[RolloutGroup], place: tuple[int, int]) -> int:
    return groups[place[0]].summaries[place[1]].num_tokens


def _value(reward: Reward, label: str) -> float:
    part = reward.parts.get(label)
    return float("nan") if part is None or part.value is None else part.value
