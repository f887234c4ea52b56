"""One critic rank: values of every token, advantages from them, and the update that improves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rlsys.algorithms import advantages, kl
from rlsys.algorithms.value_loss import value_loss
from rlsys.config.schema import AlgorithmConfig, CriticConfig
from rlsys.learner.rank import GangWorker, Share, TrainItem, items_of, mean_metrics
from rlsys.models.packing import TokenBatch
from rlsys.models.padding import pad
from rlsys.models.policy import DTYPES
from rlsys.models.value import load_critic
from rlsys.types import NonFiniteTrajectory, ValueEstimate


@dataclass(frozen=True)
class CriticSetup:
    """What a critic rank needs of the run's configuration."""

    critic: CriticConfig
    algorithm: AlgorithmConfig
    model_path: str
    trust_remote_code: bool
    num_updates: int  # of the whole run, for the schedule
    passes: int  # over a step's minibatches
    seed: int


class CriticWorker(GangWorker):
    """The gang's second model. Its estimates stay in the object store, as every token array."""

    TAG = "critic"

    def __init__(self, rank: int, setup: CriticSetup) -> None:
        super().__init__(rank, setup.critic, setup.num_updates, setup.seed)
        self._setup = setup
        self._gae: Callable[..., Any] = advantages.registry.component(setup.algorithm.advantage)
        self._kl = kl.registry.get(setup.algorithm.kl.name)

    def estimate(
        self, rewards: Sequence[Sequence[float | None]], share: Share, *arrays: Any
    ) -> list[dict[str, float] | list[ValueEstimate]]:
        """Values, returns and advantages of whole groups.

        Args:
            rewards: of this rank's groups, one list each; None where a reward failed (its estimate trains nobody).
            share: one minibatch with every trajectory of these groups.
            arrays: as `items_of` takes them.

        Returns: metrics, the same on every rank, then a list per group.
        """
        items = items_of(share, arrays)[0]
        by_row = self._estimates(items, rewards, share.coefficients.kl)
        estimates = [by_row[item.row.index] for item in items]
        counted = [
            (item, estimate)
            for item, estimate in zip(items, estimates, strict=True)
            if rewards[item.row.group][item.row.sample] is not None
        ]
        metrics, mean, scale = self._statistics(counted)
        if self._setup.critic.whiten:
            masks = [item.trajectory.loss_mask for item in items]
            estimates = [_whitened(e, mask, mean, scale) for e, mask in zip(estimates, masks, strict=True)]
        nested: list[dict[str, float] | list[ValueEstimate]] = [metrics]
        start = 0
        for group in rewards:
            nested.append(estimates[start : start + len(group)])
            start += len(group)
        return nested

    def update(self, share: Share, *arrays: Any) -> tuple[dict[str, float], list[NonFiniteTrajectory]]:
        """One step's optimizer updates, as the learner's: metrics and the trajectories that were not finite."""
        minibatches = items_of(share, arrays)
        done: list[dict[str, float]] = []
        for update in range(self._setup.passes * len(minibatches)):
            number = update % len(minibatches)
            tokens = max(share.num_tokens[number], 1)
            sums = {"loss": 0.0, "clipped": 0.0}
            for chosen in self._microbatches(minibatches[number]):
                self._microbatch(chosen, tokens, sums)
            result = self._step()
            total = self._reduced(sums)
            done.append(
                {
                    "critic/loss": total["loss"],
                    "critic/clip_fraction": total["clipped"] / tokens,
                    "critic/grad_norm": result.grad_norm,
                    "critic/lr": result.lr,
                    "critic/not_applied": float(not result.is_applied),
                }
            )
            if not result.is_applied:
                return done[-1], []
        return mean_metrics(done[-len(minibatches) :], share.num_tokens), []

    def _module(self) -> nn.Module:
        setup = self._setup
        return load_critic(
            setup.model_path,
            DTYPES[setup.critic.dtype],
            packing=setup.critic.packing,
            trust_remote_code=setup.trust_remote_code,
        )

    def _values(self, batch: TokenBatch) -> torch.Tensor:
        with self._spans.span("forward"):
            return self._engine(batch)

    def _estimates(
        self, items: Sequence[TrainItem], rewards: Sequence[Sequence[float | None]], kl_coef: float
    ) -> dict[int, ValueEstimate]:
        """Of every item, by row: the reward at its last token, and the KL at each where it belongs into the reward."""
        estimates: dict[int, ValueEstimate] = {}
        for chosen in self._microbatches(items):
            batch = self._batch(chosen)
            with torch.no_grad():
                values = self._values(batch).cpu()
            mask = batch.loss_mask.cpu()
            of_tokens = torch.zeros(mask.shape)
            for row, item in enumerate(chosen):
                sampled = mask[row].nonzero()
                if len(sampled):
                    of_tokens[row, sampled[-1]] = rewards[item.row.group][item.row.sample] or 0.0
            references = [item.ref_logprobs for item in chosen if item.ref_logprobs is not None]
            if self._setup.algorithm.kl.apply_to == "reward" and references:
                behavior = pad([item.trajectory.behavior_logprobs for item in chosen], torch.float32)
                divergence = self._kl(behavior, pad(references, torch.float32))
                of_tokens -= kl_coef * torch.where(mask, divergence, 0.0)
            advantage, returns = self._gae(of_tokens, values, mask)
            for row, item in enumerate(chosen):
                rows = (table[row, : item.trajectory.num_tokens].numpy() for table in (values, returns, advantage))
                estimates[item.row.index] = ValueEstimate(*rows)
        return estimates

    def _statistics(self, counted: Sequence[tuple[TrainItem, ValueEstimate]]) -> tuple[dict[str, float], float, float]:
        """Metrics, and the mean and standard deviation of advantages over every rank's tokens."""
        names = ("advantage", "value", "return")
        sums = dict.fromkeys(["tokens", "error", *names, *(f"{name}_squares" for name in names)], 0.0)
        for item, estimate in counted:
            mask = item.trajectory.loss_mask
            sums["tokens"] += float(mask.sum())
            for name, values in zip(names, (estimate.advantages, estimate.values, estimate.returns), strict=True):
                chosen = values[mask].astype(np.float64)
                sums[name] += float(chosen.sum())
                sums[f"{name}_squares"] += float((chosen**2).sum())
            sums["error"] += float(((estimate.returns - estimate.values)[mask].astype(np.float64) ** 2).sum())
        total = self._reduced(sums)
        tokens = max(total["tokens"], 1.0)
        means = {name: total[name] / tokens for name in names}
        variances = {name: max(total[f"{name}_squares"] / tokens - means[name] ** 2, 0.0) for name in names}
        explained = 1.0 - total["error"] / tokens / variances["return"] if variances["return"] > 0 else float("nan")
        metrics = {
            "critic/value/mean": means["value"],
            "critic/return/mean": means["return"],
            "critic/explained_variance": explained,
        }
        return metrics, means["advantage"], variances["advantage"] ** 0.5

    def _microbatch(self, items: Sequence[TrainItem], tokens: int, sums: dict[str, float]) -> None:
        device = self._engine.device
        batch = self._batch(items)
        values = self._values(batch)
        estimates = [item.estimate for item in items if item.estimate is not None]
        old = pad([estimate.values for estimate in estimates], torch.float32).to(device)
        returns = pad([estimate.returns for estimate in estimates], torch.float32).to(device)
        per_token, clipped = value_loss(values, old, returns, self._setup.critic.value_clip)
        loss = torch.where(batch.loss_mask, per_token, 0.0).sum() / tokens
        self._backward(loss, is_finite=bool(torch.isfinite(loss.detach())))
        sums["loss"] += float(loss.detach())
        sums["clipped"] += float((clipped & batch.loss_mask).sum())


def _whitened(estimate: ValueEstimate, mask: np.ndarray, mean: float, deviation: float) -> ValueEstimate:
    advantages = np.where(mask, (estimate.advantages - mean) / (deviation + 1e-8), 0.0).astype(np.float32)
    return ValueEstimate(estimate.values, estimate.returns, advantages)
