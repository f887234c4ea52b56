"""One policy rank: the optimizer updates of a step.

Numbers from before the step (old log-probabilities, entropies) are needed for the ratio, for the choice of tokens and
for the comparison with the engines. With one minibatch per step the forward of the first update usually gives them for
free. `_needs_old_logprob_pass` decides whether a pass without gradient over the whole step comes first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from rlsys.algorithms import aggregation
from rlsys.algorithms.loss import Objective
from rlsys.learner.loss_inputs import finite_rows, loss_inputs
from rlsys.learner.policy_services import PolicyServices
from rlsys.learner.rank import StepResult, mean_metrics
from rlsys.learner.rank_batch import RankBatch, TrainItem, items_of
from rlsys.learner.setup import PolicySetup
from rlsys.learner.step_dump import StepRecorder
from rlsys.learner.token_records import TokenRecord, records_of, select_tokens
from rlsys.models.lora import set_dropout
from rlsys.models.packing import TokenBatch
from rlsys.types import NonFiniteTrajectory
from rlsys.weights.verify import Agreement, Differences, comparable, merge


@dataclass
class StepData:
    """This rank's data of one step."""

    batch: RankBatch
    minibatches: list[list[TrainItem]]
    old_tokens: dict[int, TokenRecord] = field(default_factory=dict)  # records by the rows' indices, as far as computed
    done: list[dict[str, float]] = field(default_factory=list)  # the metrics of each update so far


@dataclass
class UpdateSums:
    """Statistics of one update on this rank, summed over its microbatches."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    largest: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    nonfinite: list[NonFiniteTrajectory] = field(default_factory=list)


class PolicyRank(PolicyServices):
    """A policy rank that trains."""

    def __init__(self, rank: int, setup: PolicySetup) -> None:
        super().__init__(rank, setup)
        self._configure(setup)

    def _configure(self, setup: PolicySetup) -> None:
        """Set everything that depends on the algorithm alone; the model and its engine stay."""
        self._setup = setup
        self._objective = Objective(setup.algorithm)
        self._agreement = Agreement(setup.learner.dtype, setup.engine_dtype)
        node = setup.algorithm.aggregation
        is_local = aggregation.registry.fact(str(node["name"]), "local", False)
        self._local_weights = aggregation.registry.component(node) if is_local else None
        self._has_dropout = setup.learner.lora.rank > 0 and setup.learner.lora.dropout > 0
        # An adaptive bonus may be 0 now and return later, so its gradient path is always built.
        self._has_bonus = setup.algorithm.entropy.coef > 0 or setup.algorithm.entropy.target is not None

    def update(self, batch: RankBatch, *arrays: Any) -> tuple[dict[str, float], list[NonFiniteTrajectory]]:
        """Make one step's optimizer updates.

        Args:
            batch: this rank's rows.
            *arrays: as `items_of` takes them.

        Returns: metrics, the same on every rank, and this rank's trajectories whose numbers were not finite. After an
        update that was not applied, the remaining ones are left out.
        """
        step = StepData(batch, items_of(batch, arrays))
        if batch.dump_to is None:
            return self._make_updates(step)
        recorder, folder = StepRecorder(self._engine), Path(batch.dump_to)
        # Before the updates, which nothing of it survives when they fail.
        recorder.dump_arrays(folder, self._rank, step.minibatches)
        with recorder.gradients():
            result = self._make_updates(step)
        self._all_gather(None)  # every rank has written its arrays
        if self._rank == 0:
            recorder.dump_record(folder, self._setup, batch, recorder.record(step.done))
        return result

    def _make_updates(self, step: StepData) -> tuple[dict[str, float], list[NonFiniteTrajectory]]:
        """Make all optimizer updates of a step; returns what `update` does."""
        num_minibatches = len(step.minibatches)
        metrics: dict[str, float] = {}
        has_first_pass = self._needs_old_logprob_pass(num_minibatches)
        if has_first_pass:
            self._compute_old_logprobs(step)
            metrics |= self._verify(step, step.minibatches)
            nonfinite = _nonfinite(step)
            # Every rank must know whether any rank found one: the updates are collectives.
            if any(self._all_gather(bool(nonfinite))):
                return metrics | {"policy/not_applied": 1.0, "policy/updates_applied": 0.0}, nonfinite
        for update in range(self._setup.passes * num_minibatches):
            number = update % num_minibatches
            sums = self._accumulate(step, number)
            if update == 0 and not has_first_pass:
                # Still before the first optimizer step: a wrong broadcast must not train the policy. Only the first
                # minibatch has records by now. With several, `weights.verify` asks for the pass over all of them.
                metrics |= self._verify(step, step.minibatches[:1])
            result = self._step()  # the policy changes here
            step.done.append(self._metrics(sums, result, step.batch.num_tokens[number]))
            if not result.is_applied:
                refused = {"policy/not_applied": 1.0, "policy/updates_applied": float(update)}
                return metrics | step.done[-1] | refused, sums.nonfinite
        # The last pass, because it ends nearest to the policy that is broadcast.
        last_pass = mean_metrics(step.done[-num_minibatches:], step.batch.num_tokens)
        return metrics | last_pass | {"policy/not_applied": 0.0, "policy/updates_applied": float(len(step.done))}, []

    def _needs_old_logprob_pass(self, num_minibatches: int) -> bool:
        """Return whether the policy must go over the whole step before it changes.

        With one minibatch the first update's own forward has the policy's numbers from before the step.
        """
        if self._objective.selects is not None or self._setup.algorithm.entropy.top_quantile < 1:
            return True  # tokens are chosen among all of the update's, before the first backward
        if self._has_dropout:
            return True  # the engines sampled without dropout, and the ratio needs probabilities without it too
        return num_minibatches > 1 and (self._setup.old_logprobs == "learner" or self._setup.weights.verify)

    def _compute_old_logprobs(self, step: StepData) -> None:
        """Fill in `old_tokens` of the whole step under the policy as it is, with the tokens chosen by them."""
        for number, items in enumerate(step.minibatches):
            found: dict[int, TokenRecord] = {}
            for chosen in self._microbatches(items):
                batch = self._batch(chosen)
                with torch.no_grad():
                    found |= records_of(chosen, *self._forward(batch, with_entropy_gradient=False))
            quantile = self._setup.algorithm.entropy.top_quantile
            # Python's hash of integers is the same in every process, unlike that of strings.
            seed = hash((self._setup.seed, step.batch.policy_version, number))
            select_tokens(items, found, self._all_gather, self._objective.selects, quantile, seed=seed)
            step.old_tokens |= found

    def _forward(self, batch: TokenBatch, *, with_entropy_gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and entropies, [B, T] each."""
        with self._spans.span("forward"):
            return self._engine(batch, self._setup.temperature, with_entropy_gradient)

    def _accumulate(self, step: StepData, number: int) -> UpdateSums:
        """Run forward and backward of every microbatch of a minibatch; the gradients add up in the engine."""
        sums = UpdateSums()
        microbatches = self._microbatches(step.minibatches[number])
        if self._has_dropout:
            set_dropout(self._engine.module, is_active=True)
        for chosen, weights in zip(microbatches, self._weights(microbatches), strict=True):
            self._microbatch(step, number, chosen, weights, sums)
        if self._has_dropout:
            set_dropout(self._engine.module, is_active=False)
        return sums

    def _weights(self, microbatches: Sequence[Sequence[TrainItem]]) -> list[torch.Tensor]:
        """Return the weight of a token of each row, [B] per microbatch.

        The driver computed them over the whole update, unless the aggregation is defined over a microbatch.
        """
        if self._local_weights is None:
            return [torch.tensor([item.row.weight for item in chosen]) for chosen in microbatches]
        # Microbatches are averaged over all ranks, and empty ones do not count.
        num_filled = self._all_reduce({"filled": sum(chosen[0].row.index >= 0 for chosen in microbatches)})["filled"]
        weights = []  # [B] each
        for chosen in microbatches:
            lengths = torch.tensor([item.row.num_response_tokens for item in chosen])
            groups = torch.tensor([item.row.group for item in chosen])
            weights.append(self._local_weights(lengths, groups).float() / num_filled)
        return weights

    def _microbatch(
        self, step: StepData, number: int, items: Sequence[TrainItem], weights: torch.Tensor, sums: UpdateSums
    ) -> None:
        """Run forward and backward of one microbatch, and add its statistics to `sums`.

        The first forward over a trajectory also gives its record in `old_tokens`, if no pass before has.
        """
        batch = self._batch(items)
        logprobs, entropy = self._forward(batch, with_entropy_gradient=self._has_bonus)
        if any(item.row.index not in step.old_tokens for item in items):
            # The right side wins: a record that is there already is from before the step.
            step.old_tokens = records_of(items, logprobs, entropy) | step.old_tokens
        inputs = loss_inputs(items, logprobs, entropy, batch.loss_mask, step.old_tokens, self._setup.old_logprobs)
        num_tokens = step.batch.num_tokens[number]
        result = self._objective(inputs, weights.to(self._engine.device), step.batch.coefficients, num_tokens)
        rows_are_finite = finite_rows(inputs)
        loss = result.loss + self._balance_loss(items, num_tokens, sums)
        is_finite = all(rows_are_finite) and bool(torch.isfinite(loss.detach()))
        self._backward(loss, is_finite=is_finite)
        if not is_finite:
            what = "log-probability or advantage" if not all(rows_are_finite) else "loss"
            # A loss that overflows from finite inputs is the whole microbatch's.
            bad = [item for item, finite in zip(items, rows_are_finite, strict=True) if not finite] or items
            sums.nonfinite += [
                NonFiniteTrajectory(item.row.group, item.row.sample, what) for item in bad if item.row.index >= 0
            ]
        for name, value in result.sums.items():
            sums.sums[name] += float(value)
        for name, value in result.largest.items():
            sums.largest[name] = max(sums.largest[name], float(value))

    def _balance_loss(self, items: Sequence[TrainItem], num_tokens: int, sums: UpdateSums) -> torch.Tensor | float:
        """Return this microbatch's part of the loss that balances experts; it is averaged over trained tokens."""
        loss: torch.Tensor | None = self._engine.module.balance_loss
        if loss is None:
            return 0.0
        part = loss * (sum(item.row.num_response_tokens for item in items) / max(num_tokens, 1))
        sums.sums["balance"] += float(part)
        return part

    def _verify(self, step: StepData, minibatches: Sequence[Sequence[TrainItem]]) -> dict[str, float]:
        """Compare engine and learner on the tokens that this policy version sampled, on all ranks together.

        Runs before the first optimizer step. Raises WeightMismatchError when they differ by more than accepted.
        """
        version = step.batch.policy_version
        local: dict[int, Differences] = {}
        for item in (item for items in minibatches for item in items):
            trajectory = item.trajectory
            learned = step.old_tokens[item.row.index].logprobs
            same = comparable(trajectory, version, kv_is_kept=self._setup.kv_is_kept)
            same &= np.isfinite(learned)  # NaN in the learner is reported as a step that is not finite, not as this
            found = Differences.between(trajectory.behavior_logprobs[same], learned[same])
            local[trajectory.engine] = local.get(trajectory.engine, Differences()) + found
        per_engine = merge(self._all_gather(local))
        if self._setup.weights.verify:
            self._agreement.check(per_engine, version)
        return sum(per_engine.values(), Differences()).metrics()

    def _metrics(self, sums: UpdateSums, result: StepResult, num_tokens: int) -> dict[str, float]:
        """Reduce one update's statistics over all ranks and return its metrics."""
        # Collectives, and metrics that are the same on every rank: the driver reads rank 0's.
        total = self._all_reduce(sums.sums)
        largest = self._all_reduce(sums.largest, dist.ReduceOp.MAX)
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
        if "balance" in total:
            metrics["policy/balance_loss"] = total["balance"]
        if "weight" in total:
            # Never 0: when every weight is 0, the fraction below is 0 instead of 0 / 0.
            squares = max(tokens * total["weight_squares"], 1e-30)
            metrics |= {
                "correction/ratio/mean": total["ratio"] / tokens,
                "correction/ratio/max": largest["ratio"],
                "correction/weight/mean": total["weight"] / tokens,
                "correction/masked_fraction": total["weight_zeros"] / tokens,
                # Kish's effective sample size (sum w)^2 / sum w^2, as a share of all tokens.
                "correction/effective_sample_fraction": total["weight"] ** 2 / squares,
            }
        return metrics


def _nonfinite(step: StepData) -> list[NonFiniteTrajectory]:
    """Return this rank's trajectories whose log-probabilities under the present policy hold NaN or infinity."""
    items = (item for minibatch in step.minibatches for item in minibatch)
    return [
        NonFiniteTrajectory(item.row.group, item.row.sample, "log-probability")
        for item in items
        if not np.isfinite(step.old_tokens[item.row.index].logprobs).all()
    ]
