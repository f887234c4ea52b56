"""The learner's input, made of a step's batch: values where there is a critic, advantages and loss weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from rlsys.algorithms import advantages, aggregation
from rlsys.algorithms.advantages import AdvantageInputs
from rlsys.config.schema import Config
from rlsys.metrics.step import StageClock
from rlsys.orchestrator.batch import StepBatch
from rlsys.rewards.entry import labels_of
from rlsys.rewards.judges import judged, judges_of
from rlsys.types import Coefficients, Experience, ExperienceRow, Reward, RolloutGroup, ScoredGroup

logger = logging.getLogger(__name__)


class Critic(Protocol):
    """The critic's ranks, which estimate values."""

    async def estimate(
        self, groups: Sequence[ScoredGroup], coefficients: Coefficients
    ) -> tuple[tuple[Any, ...], dict[str, float]]:
        """Return a reference per group to its trajectories' value estimates, and metrics."""


class ExperienceBuilder:
    """A step's experience, built by the configured estimator and aggregation."""

    def __init__(
        self, config: Config, clock: StageClock, coefficients: Callable[[], Coefficients], critic: Critic | None
    ) -> None:
        algorithm = config.algorithm
        self._clock = clock
        self._coefficients = coefficients
        self._critic = critic
        self._advantage = advantages.registry.component(algorithm.advantage)
        self._aggregate = aggregation.registry.component(algorithm.aggregation)
        self._labels = {label: float(spec.get("weight", 1.0)) for label, spec in labels_of(config)}
        self._judges = judges_of(config)
        self._kl_in_reward = algorithm.kl.coef > 0 and algorithm.kl.apply_to == "reward"
        self._mask_truncated = algorithm.groups.mask_truncated
        self._on_end = config.episodes.on_end
        self._num_minibatches = config.train.minibatches_per_step
        self._has_warned = False

    async def build(self, batch: StepBatch) -> Experience:
        """Return the step's experience; it is empty when nothing of the batch may be trained.

        Trajectories without a valid reward, or baseline, are left out (and counted in the metrics).
        """
        groups = batch.trained_groups if batch.is_usable else []
        coefficients, estimates = self._coefficients(), None
        metrics: dict[str, float] = {}
        with self._clock.stage("advantages"):
            if self._critic is not None and groups:
                estimates, metrics = await self._critic.estimate(groups, coefficients)
            valid = [
                (g, s)
                for g, group in enumerate(groups)
                for s, reward in enumerate(group.rewards)
                if reward.total is not None
                and (group.baseline is None or group.baseline.total is not None)
                and self._on_end.get(group.rollout.summaries[s].end or "") != "drop"
            ]
            values = [0.0] * len(valid)
            if estimates is None and valid:
                values = self._advantage(self._inputs(groups, valid, coefficients)).tolist()
            minibatches = self._minibatches([group.rollout for group in groups], valid, values)
            metrics["groups/empty_minibatches"] = float(self._num_minibatches - len(minibatches))
            self._warn_of_empty(batch.policy_version + 1, len(minibatches))
            references = [group.reference.logprobs for group in groups if group.reference is not None]
            return Experience(
                minibatches=minibatches,
                trajectories=tuple(group.rollout.trajectories for group in groups),
                ref_logprobs=tuple(references) if references else None,
                estimates=estimates,
                policy_version=batch.policy_version,
                coefficients=coefficients,
                metrics=metrics,
            )

    def _inputs(
        self, groups: Sequence[ScoredGroup], valid: Sequence[tuple[int, int]], coefficients: Coefficients
    ) -> AdvantageInputs:
        # Float64: a group's mean and deviation of nearly equal rewards cancel badly in float32.
        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float64)

        chosen = [groups[g].rewards[s] for g, s in valid]
        # Rewards and baselines here are valid ones; `or 0.0` never applies, and is there for the type checker.
        totals = column([float(reward.total or 0.0) for reward in chosen])
        if self._kl_in_reward:
            sums = [reference.kl_sums[s] for g, s in valid if (reference := groups[g].reference) is not None]
            if sums:
                totals = totals - coefficients.kl * column(sums)
        baselines = [float(baseline.total or 0.0) for g, _ in valid if (baseline := groups[g].baseline) is not None]
        lengths = [groups[g].rollout.summaries[s].num_response_tokens for g, s in valid]
        verdicts = [judged(reward, self._judges) for reward in chosen]
        parts = [[_value(reward, label) for label in self._labels] for reward in chosen]
        return AdvantageInputs(
            rewards=totals,
            groups=torch.tensor([g for g, _ in valid], dtype=torch.int64),
            lengths=torch.tensor(lengths, dtype=torch.int64),
            parts=torch.tensor(parts, dtype=torch.float64),
            part_weights=column(list(self._labels.values())),
            judged=column([math.nan if value is None else value for value in verdicts]) if self._judges else None,
            greedy_rewards=column(baselines) if baselines else None,
        )

    def _minibatches(
        self, groups: Sequence[RolloutGroup], valid: Sequence[tuple[int, int]], values: Sequence[float]
    ) -> tuple[tuple[ExperienceRow, ...], ...]:
        """Divide whole groups, in order, into parts of nearly equal number; each part has its own loss weights.

        With fewer groups than parts, or none of whose tokens are trained, some parts are left out.
        """
        present = sorted({g for g, _ in valid})
        part_of = {g: position * self._num_minibatches // len(present) for position, g in enumerate(present)}
        minibatches = []
        for part in range(self._num_minibatches):
            chosen = [i for i, (g, _) in enumerate(valid) if part_of[g] == part]
            if not chosen:
                continue
            # Weights before rows are dropped: a response without trained tokens still counts where the mean is over
            # responses.
            lengths = [self._num_trained_tokens(groups[valid[i][0]], valid[i][1]) for i in chosen]
            weights = self._aggregate(torch.tensor(lengths), torch.tensor([valid[i][0] for i in chosen])).tolist()
            rows = tuple(
                ExperienceRow(i, *valid[i], values[i], weight, _num_tokens(groups, valid[i]), length)
                for i, weight, length in zip(chosen, weights, lengths, strict=True)
                if length > 0
            )
            if rows:
                minibatches.append(rows)
        return tuple(minibatches)

    def _warn_of_empty(self, step: int, num_minibatches: int) -> None:
        """Log the first step that makes some of its updates and not all; the metric has every one."""
        if self._has_warned or not 0 < num_minibatches < self._num_minibatches:
            return
        self._has_warned = True
        logger.warning(
            "step %d has %d minibatches, not train.minibatches_per_step=%d, because its responses to train are of too "
            "few prompts: it makes fewer updates (groups/empty_minibatches counts such minibatches in every step)",
            step,
            num_minibatches,
            self._num_minibatches,
        )

    def _num_trained_tokens(self, group: RolloutGroup, sample: int) -> int:
        """Return a trajectory's number of trained tokens: none for a truncated one where those are masked."""
        summary = group.summaries[sample]
        masked = self._mask_truncated and summary.finish_reason == "length"
        masked |= self._on_end.get(summary.end or "") == "mask"
        return 0 if masked else summary.num_response_tokens


def _num_tokens(groups: Sequence[RolloutGroup], index: tuple[int, int]) -> int:
    return groups[index[0]].summaries[index[1]].num_tokens


def _value(reward: Reward, label: str) -> float:
    # NaN stands for a part that did not apply to this trajectory; estimators that read parts leave it out.
    part = reward.parts.get(label)
    return float("nan") if part is None or part.value is None else part.value
