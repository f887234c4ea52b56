"""The divergence from the sampling policy to another one, summed over whole responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from rlsys.types import Trajectory

# Takes the log-probabilities of the same n tokens under two policies, [n] each, and returns [n].
Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def kl_sums(
    divergence: Divergence, groups: Sequence[Sequence[Trajectory]], ref_logprobs: Sequence[Sequence[np.ndarray]]
) -> list[list[float]]:
    """Return the divergence of each response, summed over its tokens, one list per group.

    Args:
        divergence: an estimator of the KL per token.
        groups: the trajectories, with the log-probabilities of the policy that sampled them.
        ref_logprobs: the other policy's log-probabilities of every trajectory of every group, [L] float32 each.
    """
    return [
        [_kl_sum(divergence, *pair) for pair in zip(group, of_group, strict=True)]
        for group, of_group in zip(groups, ref_logprobs, strict=True)
    ]


def _kl_sum(divergence: Divergence, trajectory: Trajectory, ref_logprobs: np.ndarray) -> float:
    mask = trajectory.loss_mask
    # Copies: arrays out of Ray's object store are read-only, and torch warns about wrapping them.
    sampled = torch.from_numpy(trajectory.behavior_logprobs[mask].copy())
    return float(divergence(sampled, torch.from_numpy(ref_logprobs[mask].copy())).sum())
