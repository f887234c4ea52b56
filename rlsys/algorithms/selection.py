"""Choices of tokens among all tokens of an update.

A quantile or a covariance over a microbatch alone would depend on how the update was split, so every rank gathers all
tokens' numbers and makes the same choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class UpdateTokens:
    """Every trained token of one optimizer update, of all ranks, in the order of the update's rows: [n] float32 each.

    The numbers are those of the policy before the step's first update.
    """

    logprobs: torch.Tensor
    entropies: torch.Tensor
    advantages: torch.Tensor
    seed: int  # for random choices, which must be the same on every rank


def top_entropy(tokens: UpdateTokens, quantile: float) -> torch.Tensor:
    """Choose the share `quantile` of tokens with the highest entropy, [n] bool (arXiv:2506.01939).

    Example: 0.2 chooses the top fifth. The threshold interpolates linearly between order statistics; all tokens at the
    threshold are chosen.
    """
    if not len(tokens.entropies):
        return torch.zeros(0, dtype=torch.bool)
    ordered = tokens.entropies.double().sort().values
    # By hand, because torch.quantile refuses more than 2**24 values.
    position = (1.0 - quantile) * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    threshold = ordered[below] + (position - below) * (ordered[above] - ordered[below])
    return tokens.entropies.double() >= threshold


def covariances(tokens: UpdateTokens) -> torch.Tensor:
    """Return `(logprob - mean) * (advantage - mean)` of every token, [n] float64 (arXiv:2505.22617, equation 10)."""
    logprobs, advantages = tokens.logprobs.double(), tokens.advantages.double()
    if not len(logprobs):
        return logprobs
    return (logprobs - logprobs.mean()) * (advantages - advantages.mean())
