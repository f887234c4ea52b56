"""One learner rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from rlsys.algorithms import aggregation
from rlsys.algorithms.inputs import LossInputs
from rlsys.algorithms.loss import Objective
from rlsys.learner.policy_worker import LearnerSetup, PolicyWorker
from rlsys.learner.rank import Share, StepResult, TrainItem, items_of, mean_metrics
from rlsys.learner.tokens import TokenRecord, choose, records_of
from rlsys.models.adapters import (
    set_dropout,
)
from rlsys.models.packing import TokenBatch
from rlsys.models.padding import pad
from rlsys.types import NonFiniteTrajectory
from rlsys.weights.verify import LogprobDiff, bound_of, check, comparable, diff_of, merge


@dataclass
class UpdateSums:
    """What one update adds up on this rank."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    largest: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    offenders: list[NonFiniteTrajectory] = field(default_factory=list)


class LearnerWorker(PolicyWorker):
    """Trains the policy, and rank 0 sends it to the engines."""

    def __init__(self, rank: int, setup: LearnerSetup) -> None:
        super().__init__(rank, setup)
        self._take(setup)

    def _take(self, setup: LearnerSetup) -> None:
        """Everything that depends on the algorithm alone."""
        self._setup = setup
        self._objective = Objective(setup.algorithm)
        node = setup.algorithm.aggregation
        is_local = aggregation.registry.fact(str(node["name"]), "local", False)
        self._local_weights = aggregation.registry.component(node) if is_local else None
        self._has_dropout = setup.learner.lora.rank > 0 and setup.learner.lora.dropout > 0
        self._bonus = setup.algorithm.entropy.coef > 0 or setup.algorithm.entropy.target is not None

    def update(self, share: Share, *arrays: Any) -> tuple[dict[str, float], list[NonFiniteTrajectory]]:
        """One step's optimizer updates; `arrays` as `items_of` takes them.

        Returns: metrics, the same on every rank, and the trajectories of this rank whose numbers were not finite. After
        a step that was not applied the rest of them is left out.
        """
        minibatches = items_of(share, arrays)
        known: dict[int, TokenRecord] = {}
        metrics: dict[str, float] = {}
        if looks := self._needs_first_look(len(minibatches)):
            self._look(minibatches, known, share.policy_version)
            metrics |= self._verify(minibatches, known, share.policy_version)
            offenders = _not_finite(minibatches, known)
            if any(self._gathered(bool(offenders))):
                return metrics | {"policy/not_applied": 1.0, "policy/updates_applied": 0.0}, offenders
        done: list[dict[str, float]] = []
        for update in range(self._setup.passes * len(minibatches)):
            number = update % len(minibatches)
            sums = self._accumulate(minibatches[number], number, share, known)
            if update == 0 and not looks:
                metrics |= self._verify(minibatches[:1], known, share.policy_version)
            result = self._step()
            done.append(self._metrics(sums, result, share.num_tokens[number]))
            if not result.is_applied:
                refused = {"policy/not_applied": 1.0, "policy/updates_applied": float(update)}
                return metrics | done[-1] | refused, sums.offenders
        last_pass = mean_metrics(done[-len(minibatches) :], share.num_tokens)
        return metrics | last_pass | {"policy/not_applied": 0.0, "policy/updates_applied": float(len(done))}, []

    def _needs_first_look(self, num_minibatches: int) -> bool:
        """Whether the policy must go over the whole step before it changes.

        With one minibatch the first update's own forward tells what the policy was before it: no pass of its own.
        """
        if self._objective.selects is not None or self._setup.algorithm.entropy.top_quantile < 1:
            return True
        if self._has_dropout:  # what the engines sampled with, and the ratio is taken to, drops nothing
            return True
        return num_minibatches > 1 and (self._setup.old_logprobs == "learner" or self._setup.weights.verify)

    def _look(
        self, minibatches: Sequence[Sequence[TrainItem]], known: dict[int, TokenRecord], policy_version: int
    ) -> None:
        """Log-probabilities and entropies of every token under the policy as it is, and what is chosen by them."""
        for number, items in enumerate(minibatches):
            found: dict[int, TokenRecord] = {}
            for chosen in self._microbatches(items):
                batch = self._batch(chosen)
                with torch.no_grad():
                    found |= records_of(chosen, *self._forward(batch, with_entropy_gradient=False))
            quantile = self._setup.algorithm.entropy.top_quantile
            seed = hash((self._setup.seed, policy_version, number))  # of integers: alike in every process
            choose(items, found, self._gathered, self._objective.selects, quantile, seed=seed)
            known |= found

    def _forward(self, batch: TokenBatch, *, with_entropy_gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with self._spans.span("forward"):
            return self._engine(batch, self._setup.temperature, with_entropy_gradient)

    def _accumulate(
        self, items: Sequence[TrainItem], number: int, share: Share, known: dict[int, TokenRecord]
    ) -> UpdateSums:
        """Forward and backward of every microbatch; `known` gains what the first pass over a token sees."""
        sums = UpdateSums()
        microbatches = self._microbatches(items)
        if self._has_dropout:
            set_dropout(self._engine.module, is_active=True)
        for chosen, weights in zip(microbatches, self._weights(microbatches), strict=True):
            self._microbatch(chosen, weights, share, number, known, sums)
        if self._has_dropout:
            set_dropout(self._engine.module, is_active=False)
        return sums

    def _weights(self, microbatches: Sequence[Sequence[TrainItem]]) -> list[torch.Tensor]:
        """What a token of each row weighs, [B] a microbatch: the driver's answer, unless it depends on the split."""
        if self._local_weights is None:
            return [torch.tensor([item.row.weight for item in chosen]) for chosen in microbatches]
        filled = sum(chosen[0].row.index >= 0 for chosen in microbatches)
        num_microbatches = self._reduced({"filled": filled})["filled"]
        weights = []
        for chosen in microbatches:
            lengths = torch.tensor([item.row.num_response_tokens for item in chosen])
            groups = torch.tensor([item.row.group for item in chosen])
            weights.append(self._local_weights(lengths, groups).float() / num_microbatches)
        return weights

    def _microbatch(
        self,
        items: Sequence[TrainItem],
        weights: torch.Tensor,
        share: Share,
        number: int,
        known: dict[int, TokenRecord],
        sums: UpdateSums,
    ) -> None:
        device = self._engine.device
        batch = self._batch(items)
        logprobs, entropy = self._forward(batch, with_entropy_gradient=self._bonus)
        if any(item.row.index not in known for item in items):
            known |= {i: r for i, r in records_of(items, logprobs, entropy).items() if i not in known}
        inputs = self._inputs(items, logprobs, entropy, batch.loss_mask, known)
        result = self._objective(inputs, weights.to(device), share.coefficients, share.num_tokens[number])
        finite_rows = _finite_rows(inputs)
        is_finite = all(finite_rows) and bool(torch.isfinite(result.loss.detach()))
        self._backward(result.loss, is_finite=is_finite)
        if not is_finite:
            what = "log-probability or advantage" if not all(finite_rows) else "loss"
            bad = [item for item, finite in zip(items, finite_rows, strict=True) if not finite] or items
            sums.offenders += [
                NonFiniteTrajectory(item.row.group, item.row.sample, what) for item in bad if item.row.index >= 0
            ]
        for name, value in result.sums.items():
            sums.sums[name] += float(value)
        for name, value in result.largest.items():
            sums.largest[name] = max(sums.largest[name], float(value))

    def _inputs(
        self,
        items: Sequence[TrainItem],
        logprobs: torch.Tensor,
        entropy: torch.Tensor,
        loss_mask: torch.Tensor,
        known: Mapping[int, TokenRecord],
    ) -> LossInputs:
        def padded(arrays: Sequence[np.ndarray | None], dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
            present = [array for array in arrays if array is not None]
            return pad(present, dtype).to(loss_mask.device) if len(present) == len(items) else None

        records = [known[item.row.index] for item in items]
        advantages = padded([item.estimate.advantages if item.estimate is not None else None for item in items])
        if advantages is None:
            of_rows = torch.tensor([item.row.advantage for item in items], device=loss_mask.device)
            advantages = of_rows[:, None].expand(logprobs.shape)
        behavior = padded([item.trajectory.behavior_logprobs for item in items])
        old = {
            "learner": lambda: padded([record.logprobs for record in records]),
            "engine": lambda: behavior,
            "none": logprobs.detach,
        }[self._setup.old_logprobs]()
        assert old is not None
        return LossInputs(
            logprobs=logprobs,
            old_logprobs=old,
            advantages=advantages,
            loss_mask=loss_mask,
            ref_logprobs=padded([item.ref_logprobs for item in items]),
            behavior_logprobs=behavior,
            entropy=entropy,
            selected=padded([record.selected for record in records], torch.bool),
            high_entropy=padded([record.high_entropy for record in records], torch.bool),
        )

    def _verify(
        self, minibatches: Sequence[Sequence[TrainItem]], known: Mapping[int, TokenRecord], policy_version: int
    ) -> dict[str, float]:
        """Compare engine and learner on the tokens that this version sampled, on all ranks together.

        Runs before the first optimizer step, so that a wrong broadcast never trains the policy.
        """
        local: dict[int, LogprobDiff] = {}
        for item in (item for items in minibatches for item in items):
            trajectory = item.trajectory
            learned = known[item.row.index].logprobs
            same = comparable(trajectory, policy_version, kv_is_kept=self._setup.kv_is_kept)
            same &= np.isfinite(learned)  # what is not is the step's end, not the broadcast's
            diff = diff_of(trajectory.behavior_logprobs[same], learned[same])
            local[trajectory.engine] = local.get(trajectory.engine, LogprobDiff()) + diff
        per_engine = merge(self._gathered(local))
        bound = bound_of(self._setup.weights, self._setup.learner.dtype, self._setup.engine_dtype)
        if bound is not None:
            check(per_engine, bound=bound, policy_version=policy_version, num_engines=len(per_engine))
        overall = sum(per_engine.values(), LogprobDiff())
        if not overall.num_tokens:
            return {}
        return {"sync/logprob_abs_diff/mean": overall.mean, "sync/logprob_abs_diff/max": overall.largest}

    def _metrics(self, sums: UpdateSums, result: StepResult, num_tokens: int) -> dict[str, float]:
        total = self._reduced(sums.sums)
        largest = self._reduced(sums.largest, dist.ReduceOp.MAX)
        tokens = max(num_tokens, 1)
        metrics = {
            "policy/loss": total["loss"],
            "policy/entropy": total["entropy"] / tokens,
            "policy/clip_fraction": total["clipped"] / tokens,
            "policy/grad_norm": result.grad_norm,
            "policy/lr": result.lr,
        }
        if "kl" in total:
            metrics["policy/kl_ref"] = total["kl"] / tokens
        if "weight" in total:
            squares = max(tokens * total["weight_squares"], 1e-30)
            metrics |= {
                "correction/ratio/mean": total["ratio"] / tokens,
                "correction/ratio/max": largest["ratio"],
                "correction/weight/mean": total["weight"] / tokens,
                "correction/masked_fraction": total["weight_zeros"] / tokens,
                "correction/effective_sample_fraction": total["weight"] ** 2 / squares,
            }
        return metrics


def _not_finite(
    minibatches: Sequence[Sequence[TrainItem]], known: Mapping[int, TokenRecord]
) -> list[NonFiniteTrajectory]:
    """This rank's trajectories whose log-probabilities under the policy as it is hold NaN or infinity."""
    items = (item for minibatch in minibatches for item in minibatch)
    return [
        NonFiniteTrajectory(item.row.group, item.row.sample, "log-probability")
        for item in items
        if not np.isfinite(known[item.row.index].logprobs).all()
    ]


def _finite_rows(inputs: LossInputs) -> list[bool]:
    """Whether every trained token's log-probabilities and advantages are finite, by row."""
    bad = torch.zeros_like(inputs.loss_mask)
    for values in (inputs.logprobs, inputs.advantages, inputs.behavior_logprobs, inputs.ref_logprobs):
        if values is not None:
            bad |= ~torch.isfinite(values.detach())
    return (~(bad & inputs.loss_mask).any(dim=1)).tolist()
