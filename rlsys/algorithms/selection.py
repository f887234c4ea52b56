"""Choosing tokens among all of an update's: what a quantile or a covariance over a microbatch alone would get wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class UpdateTokens:
    """Every trained token of one optimizer update, all ranks, in the order of its rows: [n] float32 each.

    Taken before the step's first update: what the policy was when it began.
    """

    logprobs: torch.Tensor
    entropies: torch.Tensor
    advantages: torch.Tensor
    seed: int  # for a choice by lot that every rank makes alike


def top_entropy(tokens: UpdateTokens, quantile: float) -> torch.Tensor:
    """The share `quantile` of tokens with the highest entropy ("Beyond the 80/20 rule", arXiv:2506.01939), [n] bool.

    Tokens at the threshold (linear interpolation between order statistics) are all in.
    """
    if not len(tokens.entropies):
        return torch.zeros(0, dtype=torch.bool)
    ordered = tokens.entropies.double().sort().values
    position = (1.0 - quantile) * (len(ordered) - 1)  # torch.quantile refuses more than 2**24 values
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    threshold = ordered[below] + (position - below) * (ordered[above] - ordered[below])
    return tokens.entropies.double() >= threshold


def covariances(tokens: UpdateTokens) -> torch.Tensor:
    """`(logprob - mean) * (advantage - mean)` of every token, [n] float64 (arXiv:2505.22617, equation 10)."""
    logprobs, advantages = tokens.logprobs.double(), tokens.advantages.double()
    if not len(logprobs):
        return logprobs
    return (logprobs - logprobs.mean()) * (advantages - advantages.mean())
