"""The whole training loss of one microbatch: policy loss, corrections, KL to the reference, entropy bonus."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from rlsys.algorithms import corrections, kl, policy_losses
from rlsys.algorithms.inputs import LossInputs, log_ratio
from rlsys.algorithms.selection import UpdateTokens
from rlsys.config.schema import AlgorithmConfig
from rlsys.registry import option_names
from rlsys.types import Coefficients

Select = Callable[[UpdateTokens], torch.Tensor]


@dataclass(frozen=True)
class LossResult:
    """One microbatch's share. Over microbatches and ranks `sums` add up, of `largest` the maximum counts."""

    loss: torch.Tensor  # scalar with gradient
    sums: dict[str, torch.Tensor]  # scalars, over trained tokens
    largest: dict[str, torch.Tensor]


class Objective:
    """`-min(ratio * A, clip(ratio) * A) * corrections + coef * KL - coef * entropy`, with every part chosen by name."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self._policy_loss = policy_losses.registry.component(config.policy_loss)
        self._corrections = [corrections.registry.component(node) for node in config.corrections or ()]
        self._kl = kl.registry.get(config.kl.name)
        self._config = config
        self.selects = _selection(config)

    def __call__(
        self, inputs: LossInputs, weights: torch.Tensor, coefficients: Coefficients, num_tokens: int
    ) -> LossResult:
        """The loss of one microbatch.

        Args:
            inputs: tensors [B, T].
            weights: [B] float32, what a token of each row weighs (the aggregation).
            coefficients: of KL and entropy in this step.
            num_tokens: trained tokens of the whole update, all ranks: the entropy bonus is a mean over them.
        """
        inputs, mask = _masked(inputs), inputs.loss_mask
        policy = self._policy_loss(inputs)
        per_token, sums, largest = policy.per_token, {"clipped": (policy.clipped & mask).sum()}, {}
        if inputs.high_entropy is not None:
            per_token = torch.where(inputs.high_entropy, per_token, 0.0)
        if self._corrections:
            weight = self._correction(inputs)
            per_token = per_token * weight
            sums |= _statistics(inputs, weight)
            largest["ratio"] = _largest(corrections.ratio(inputs, "token"), mask)
        if self._config.kl.coef > 0:
            divergence = self._divergence(inputs)
            sums["kl"] = torch.where(mask, divergence.detach(), 0.0).sum()
            if self._config.kl.apply_to == "loss":
                per_token = per_token + coefficients.kl * divergence
        loss = (torch.where(mask, per_token, 0.0) * weights[:, None]).sum()
        if inputs.entropy is not None:
            total = torch.where(mask, inputs.entropy, 0.0).sum()
            loss = loss - coefficients.entropy * total / max(num_tokens, 1)
            sums["entropy"] = total.detach()
        return LossResult(loss, sums | {"loss": loss.detach()}, largest)

    def _correction(self, inputs: LossInputs) -> torch.Tensor:
        factors = (correct(inputs) for correct in self._corrections)
        return functools.reduce(torch.mul, factors).detach()

    def _divergence(self, inputs: LossInputs) -> torch.Tensor:
        if inputs.ref_logprobs is None:
            raise ValueError("algorithm.kl.coef > 0 needs the reference's log-probabilities")
        divergence = self._kl(inputs.logprobs, inputs.ref_logprobs)
        # Tokens were sampled by the old policy: its expectation over the present one needs their ratio (DeepSeek-V3.2,
        # arXiv:2512.02556, section 3.1), and only with it is k3's gradient that of the KL.
        return divergence * torch.exp(log_ratio(inputs)) if self._config.kl.unbiased else divergence


def _selection(config: AlgorithmConfig) -> Select | None:
    """The policy loss's choice among an update's tokens with its options filled in; None when it makes none."""
    select = policy_losses.registry.fact(str(config.policy_loss["name"]), "selects", None)
    if select is None:
        return None
    accepted = option_names(select)
    options = {name: value for name, value in config.policy_loss.items() if name in accepted}
    return functools.partial(select, **options)


def _masked(inputs: LossInputs) -> LossInputs:
    """Zeros outside the loss mask: a NaN that stands there would reach the gradient as 0 * NaN."""
    names = ("logprobs", "old_logprobs", "advantages", "ref_logprobs", "behavior_logprobs", "entropy")
    given = {name: value for name in names if (value := getattr(inputs, name)) is not None}
    return replace(inputs, **{name: torch.where(inputs.loss_mask, value, 0.0) for name, value in given.items()})


def _statistics(inputs: LossInputs, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    mask, ratio = inputs.loss_mask, corrections.ratio(inputs, "token")
    masked = torch.where(mask, weight, 0.0).double()
    return {
        "ratio": torch.where(mask, ratio, 0.0).sum(),
        "weight": masked.sum(),
        "weight_squares": (masked**2).sum(),
        "weight_zeros": (mask & (weight == 0)).sum(),
    }


def _largest(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, values, 0.0).max()
