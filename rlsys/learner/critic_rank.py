"""One critic rank: values of every token, advantages from them, and the updates that improve the values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rlsys.algorithms import advantages, kl
from rlsys.algorithms.value_loss import value_loss
from rlsys.learner.engine import divide_at_once
from rlsys.learner.rank import Rank, mean_metrics
from rlsys.learner.rank_batch import RankBatch, TrainItem, items_of
from rlsys.learner.setup import CriticSetup
from rlsys.models.packing import TokenBatch
from rlsys.models.padding import pad
from rlsys.models.policy import DTYPES
from rlsys.models.value import load_critic
from rlsys.types import NonFiniteTrajectory, ValueEstimate

Rewards = Sequence[Sequence[float | None]]  # totals per group and sample; None where a reward failed
WHITEN_EPS = 1e-8  # added to the standard deviation


class CriticRank(Rank):
    """A critic rank. Its estimates stay in Ray's object store, as all token arrays do."""

    TAG = "critic"

    def __init__(self, rank: int, setup: CriticSetup) -> None:
        super().__init__(rank, setup.critic, setup.num_updates, setup.seed)
        self._setup = setup
        self._gae: Callable[..., Any] = advantages.registry.component(setup.algorithm.advantage)
        self._kl = kl.registry.get(setup.algorithm.kl.name)

    def estimate(
        self, rewards: Rewards, batch: RankBatch, *arrays: Any
    ) -> list[dict[str, float] | list[ValueEstimate]]:
        """Estimate values, returns and advantages of whole groups.

        Args:
            rewards: totals of this rank's groups. A trajectory whose reward failed gets an estimate, but is never
                trained and does not count in the statistics.
            batch: one minibatch with every trajectory of these groups, group by group.
            *arrays: as `items_of` takes them.

        Returns: metrics, the same on every rank, then a list of estimates per group.
        """
        items = items_of(batch, arrays)[0]
        by_row = self._estimates(items, rewards, batch.coefficients.kl)
        estimates = [by_row[item.row.index] for item in items]
        counted = [
            (item, estimate)
            for item, estimate in zip(items, estimates, strict=True)
            if rewards[item.row.group][item.row.sample] is not None
        ]
        metrics, mean, deviation = self._statistics(counted)  # over all ranks, so every rank whitens alike
        if self._setup.critic.whiten:
            masks = [item.trajectory.loss_mask for item in items]
            estimates = [_whitened(e, mask, mean, deviation) for e, mask in zip(estimates, masks, strict=True)]
        remaining = iter(estimates)
        return [metrics, *([next(remaining) for _ in group] for group in rewards)]

    def update(self, batch: RankBatch, *arrays: Any) -> tuple[dict[str, float], list[NonFiniteTrajectory]]:
        """Make one step's optimizer updates; arguments and result are those of the policy's `update`."""
        minibatches = items_of(batch, arrays)
        done: list[dict[str, float]] = []
        for update in range(self._setup.passes * len(minibatches)):
            number = update % len(minibatches)
            tokens = max(batch.num_tokens[number], 1)
            sums = {"loss": 0.0, "clipped": 0.0}
            for chosen in self._microbatches(minibatches[number]):
                self._microbatch(chosen, tokens, sums)
            result = self._step()
            total = self._all_reduce(sums)
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
        return mean_metrics(done[-len(minibatches) :], batch.num_tokens), []

    def _build_model(self) -> nn.Module:
        setup = self._setup
        return load_critic(
            setup.model_path,
            DTYPES[setup.critic.dtype],
            max_tokens=setup.max_tokens,
            packing=setup.critic.packing,
            trust_remote_code=setup.trust_remote_code,
            loading=divide_at_once(setup.critic, self._world_size),
        )

    def _values(self, batch: TokenBatch) -> torch.Tensor:
        """Return the value before every trained token, [B, T]."""
        with self._spans.span("forward"):
            return self._engine(batch)

    def _estimates(self, items: Sequence[TrainItem], rewards: Rewards, kl_coef: float) -> dict[int, ValueEstimate]:
        """Return every item's estimate by its row's index (that of empty microbatches included, under -1)."""
        estimates: dict[int, ValueEstimate] = {}
        for chosen in self._microbatches(items):
            batch = self._batch(chosen)
            with torch.no_grad():
                # On the CPU from here on: `gae` loops over single tokens, and the estimates leave as NumPy arrays.
                values = self._values(batch).cpu()
            mask = batch.loss_mask.cpu()
            token_rewards = self._token_rewards(chosen, mask, rewards, kl_coef)
            advantage, returns = self._gae(token_rewards, values, mask)  # [B, T] each
            for row, item in enumerate(chosen):
                rows = (table[row, : item.trajectory.num_tokens].numpy() for table in (values, returns, advantage))
                estimates[item.row.index] = ValueEstimate(*rows)
        return estimates

    def _token_rewards(
        self, items: Sequence[TrainItem], mask: torch.Tensor, rewards: Rewards, kl_coef: float
    ) -> torch.Tensor:
        """Return the reward of each token, [B, T].

        That is the trajectory's reward at its last sampled token, minus the KL at each sampled token where the KL
        belongs in the reward.
        """
        token_rewards = torch.zeros(mask.shape)
        for row, item in enumerate(items):
            sampled = mask[row].nonzero()
            if len(sampled):
                # None, when the reward failed: such a trajectory gets an estimate, but is never trained.
                token_rewards[row, sampled[-1]] = rewards[item.row.group][item.row.sample] or 0.0
        # All or none: a run has a reference for every trajectory or for none. `EMPTY_ITEM` always has zeros, but it is
        # alone in its microbatch.
        references = [item.ref_logprobs for item in items if item.ref_logprobs is not None]
        if self._setup.algorithm.kl.apply_to == "reward" and references:
            behavior = pad([item.trajectory.behavior_logprobs for item in items], torch.float32)
            divergence = self._kl(behavior, pad(references, torch.float32))
            token_rewards -= kl_coef * torch.where(mask, divergence, 0.0)
        return token_rewards

    def _statistics(self, counted: Sequence[tuple[TrainItem, ValueEstimate]]) -> tuple[dict[str, float], float, float]:
        """Return metrics, and mean and standard deviation of the advantages, over the tokens of all ranks."""
        names = ("advantage", "value", "return")
        sums = dict.fromkeys(["tokens", "error", *names, *(f"{name}_squares" for name in names)], 0.0)
        for item, estimate in counted:
            mask = item.trajectory.loss_mask
            sums["tokens"] += float(mask.sum())
            for name, values in zip(names, (estimate.advantages, estimate.values, estimate.returns), strict=True):
                chosen = values[mask].astype(np.float64)  # E[x^2] - E[x]^2 cancels badly in float32
                sums[name] += float(chosen.sum())
                sums[f"{name}_squares"] += float((chosen**2).sum())
            sums["error"] += float(((estimate.returns - estimate.values)[mask].astype(np.float64) ** 2).sum())
        total = self._all_reduce(sums)
        tokens = max(total["tokens"], 1.0)
        means = {name: total[name] / tokens for name in names}
        variances = {name: max(total[f"{name}_squares"] / tokens - means[name] ** 2, 0.0) for name in names}
        # 1 is a perfect critic, 0 one that knows only the mean return.
        explained = 1.0 - total["error"] / tokens / variances["return"] if variances["return"] > 0 else float("nan")
        metrics = {
            "critic/value/mean": means["value"],
            "critic/return/mean": means["return"],
            "critic/explained_variance": explained,
        }
        return metrics, means["advantage"], variances["advantage"] ** 0.5

    def _microbatch(self, items: Sequence[TrainItem], tokens: int, sums: dict[str, float]) -> None:
        """Run forward and backward of one microbatch; `tokens` are those of the whole minibatch on all ranks."""
        device = self._engine.device
        batch = self._batch(items)
        values = self._values(batch)  # [B, T]
        estimates = [item.estimate for item in items if item.estimate is not None]
        old = pad([estimate.values for estimate in estimates], torch.float32).to(device)
        returns = pad([estimate.returns for estimate in estimates], torch.float32).to(device)
        per_token, clipped = value_loss(values, old, returns, self._setup.critic.value_clip)
        loss = torch.where(batch.loss_mask, per_token, 0.0).sum() / tokens
        self._backward(loss, is_finite=bool(torch.isfinite(loss.detach())))
        sums["loss"] += float(loss.detach())
        sums["clipped"] += float((clipped & batch.loss_mask).sum())


def _whitened(estimate: ValueEstimate, mask: np.ndarray, mean: float, deviation: float) -> ValueEstimate:
    """Return the estimate with advantages of zero mean and unit variance over the step's tokens."""
    scaled = np.where(mask, (estimate.advantages - mean) / (deviation + WHITEN_EPS), 0.0).astype(np.float32)
    return ValueEstimate(estimate.values, estimate.returns, scaled)
