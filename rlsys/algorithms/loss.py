"""The whole training loss of one microbatch: policy loss, KL to the reference, aggregation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlsys.algorithms import aggregation, kl, policy_losses
from rlsys.algorithms.policy_losses import LossInputs
from rlsys.config import AlgorithmConfig
from rlsys.types import LossTotals


@dataclass(frozen=True)
class LossResult:
    """`loss` is this microbatch's share of the step's loss; the sums run over its trained tokens."""

    loss: torch.Tensor  # scalar with gradient
    kl_sum: torch.Tensor
    clipped_sum: torch.Tensor


class Objective:
    """`min(ratio * A, clip(ratio) * A) - coef * KL`, with every part chosen by name."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self._policy_loss = policy_losses.registry.component(config.policy_loss)
        self._aggregate = aggregation.registry.component(config.aggregation)
        self._kl = kl.registry.get(config.kl.name)
        self._kl_coef = config.kl.coef

    def __call__(self, inputs: LossInputs, totals: LossTotals) -> LossResult:
        """Args: `inputs` tensors [B, T]; `totals` of the whole optimizer step."""
        policy = self._policy_loss(inputs)
        per_token = policy.per_token
        kl_sum = per_token.new_zeros(())
        if self._kl_coef > 0:
            if inputs.ref_logprobs is None:
                raise ValueError("algorithm.kl.coef > 0 needs the reference's log-probabilities")
            divergence = self._kl(inputs.logprobs, inputs.ref_logprobs)
            per_token = per_token + self._kl_coef * divergence
            kl_sum = divergence.detach()[inputs.loss_mask].sum()
        loss = self._aggregate(per_token, inputs.loss_mask, totals)
        return LossResult(loss=loss, kl_sum=kl_sum, clipped_sum=(policy.clipped & inputs.loss_mask).sum())
