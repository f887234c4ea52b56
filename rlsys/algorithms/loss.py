"""The training loss of one microbatch: policy loss, corrections, KL to the reference, entropy bonus."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from rlsys.algorithms import corrections, kl, policy_losses
from rlsys.algorithms.inputs import LossInputs, log_ratio
from rlsys.algorithms.selection import UpdateTokens
from rlsys.config.algorithm_schema import AlgorithmConfig
from rlsys.registry import option_names
from rlsys.types import Coefficients

Select = Callable[[UpdateTokens], torch.Tensor]


@dataclass(frozen=True)
class LossResult:
    """One microbatch's part of an update's loss and statistics."""

    loss: torch.Tensor  # scalar with gradient; losses of microbatches and ranks add up
    sums: dict[str, torch.Tensor]  # scalars over trained tokens; they add up too
    largest: dict[str, torch.Tensor]  # scalars; the maximum over microbatches and ranks counts


class Objective:
    """The loss `policy loss * corrections + coef * KL - coef * entropy`, with every part chosen by name.

    With the defaults that is `-min(ratio * A, clip(ratio) * A) * corrections + ...`.

    Attributes:
        selects: the policy loss's choice among all tokens of an update; None when it makes none.
    """

    def __init__(self, config: AlgorithmConfig) -> None:
        self._policy_loss = policy_losses.registry.component(config.policy_loss)
        self._corrections = [corrections.registry.component(node) for node in config.corrections or ()]
        self._kl = kl.registry.get(config.kl.name)
        self._config = config
        self.selects = _selection(config)

    def __call__(
        self, inputs: LossInputs, weights: torch.Tensor, coefficients: Coefficients, num_tokens: int
    ) -> LossResult:
        """Compute the loss of one microbatch.

        The aggregation's weights and `num_tokens` count the whole update. So losses of microbatches and ranks simply
        add up, and the gradient is the same under any split.

        Args:
            inputs: tensors [B, T].
            weights: [B] float32, the weight of each token of a row (the aggregation).
            coefficients: weights of KL and entropy in this step.
            num_tokens: trained tokens of the whole update on all ranks; the entropy bonus is a mean over them.
        """
        inputs, mask = _masked(inputs), inputs.loss_mask
        policy = self._policy_loss(inputs)
        per_token, sums, largest = policy.per_token, {"clipped": (policy.clipped & mask).sum()}, {}
        if inputs.high_entropy is not None:
            # The other tokens keep their KL penalty and their entropy bonus. They also stay in the denominators, which
            # `weights` hold, as in TRL.
            per_token = torch.where(inputs.high_entropy, per_token, 0.0)
        if self._corrections:
            weight = self._correction(inputs)  # [B, T]
            per_token = per_token * weight
            sums |= _statistics(inputs, weight)
            # Metrics show the ratio of single tokens, whatever the level of the corrections.
            largest["ratio"] = _largest(corrections.ratio(inputs, "token"), mask)
        # The configured coefficient: with 0 a run has no reference. Adaptation multiplies it, so it never becomes 0.
        if self._config.kl.coef > 0:
            # Measured also when the penalty is in the reward: an adaptive coefficient needs it.
            divergence = self._divergence(inputs)  # [B, T]
            sums["kl"] = torch.where(mask, divergence.detach(), 0.0).sum()
            if self._config.kl.apply_to == "loss":
                per_token = per_token + coefficients.kl * divergence
        loss = (torch.where(mask, per_token, 0.0) * weights[:, None]).sum()  # weights [B] hold all denominators
        if inputs.entropy is not None:
            total = torch.where(mask, inputs.entropy, 0.0).sum()
            loss = loss - coefficients.entropy * total / max(num_tokens, 1)
            sums["entropy"] = total.detach()
        return LossResult(loss, sums | {"loss": loss.detach()}, largest)

    def _correction(self, inputs: LossInputs) -> torch.Tensor:
        """Return the product of all corrections' weights, [B, T], without gradient."""
        factors = (correct(inputs) for correct in self._corrections)
        return functools.reduce(torch.mul, factors).detach()

    def _divergence(self, inputs: LossInputs) -> torch.Tensor:
        if inputs.ref_logprobs is None:
            raise ValueError("algorithm.kl.coef > 0 needs the reference's log-probabilities, but ref_logprobs is None")
        divergence = self._kl(inputs.logprobs, inputs.ref_logprobs)
        # The old policy sampled the tokens. The expectation under the present policy needs the ratio of the two
        # (DeepSeek-V3.2, arXiv:2512.02556, section 3.1), and only with it is k3's gradient that of the KL.
        return divergence * torch.exp(log_ratio(inputs)) if self._config.kl.unbiased else divergence


def _selection(config: AlgorithmConfig) -> Select | None:
    """Return the policy loss's choice among an update's tokens with its options filled in; None when it makes none."""
    select = policy_losses.registry.fact(str(config.policy_loss["name"]), "selects", None)
    if select is None:
        return None
    accepted = option_names(select)
    options = {name: value for name, value in config.policy_loss.items() if name in accepted}
    return functools.partial(select, **options)


def _masked(inputs: LossInputs) -> LossInputs:
    """Set values outside the loss mask to zero: a NaN there would reach the gradient as 0 * NaN."""
    names = ("logprobs", "old_logprobs", "advantages", "ref_logprobs", "behavior_logprobs", "entropy")
    given = {name: value for name in names if (value := getattr(inputs, name)) is not None}
    return replace(inputs, **{name: torch.where(inputs.loss_mask, value, 0.0) for name, value in given.items()})


def _statistics(inputs: LossInputs, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sum over trained tokens what the metrics of corrections are made of."""
    mask, ratio = inputs.loss_mask, corrections.ratio(inputs, "token")
    # Squares of weights up to e^80 do not fit into float32.
    masked = torch.where(mask, weight, 0.0).double()
    return {
        "ratio": torch.where(mask, ratio, 0.0).sum(),
        "weight": masked.sum(),
        "weight_squares": (masked**2).sum(),
        "weight_zeros": (mask & (weight == 0)).sum(),
    }


def _largest(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, values, 0.0).max()
