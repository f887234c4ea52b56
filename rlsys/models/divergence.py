"""How far a policy that sampled is from another, over whole responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from rlsys.types import Trajectory

Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of log-probabilities of the same tokens under two policies, [n] each, to [n]."""


def kl_sums(
    divergence: Divergence, groups: Sequence[Sequence[Trajectory]], ref_logprobs: Sequence[Sequence[np.ndarray]]
) -> list[list[float]]:
    """The divergence of the policy that sampled from the reference, summed over each response.

    Args:
        ref_logprobs: of every trajectory of every group, [L] float32.
    """
    return [
        [_kl_sum(divergence, *pair) for pair in zip(group, of_group, strict=True)]
        for group, of_group in zip(groups, ref_logprobs, strict=True)
    ]


def _kl_sum(divergence: Divergence, trajectory: Trajectory, ref_logprobs: np.ndarray) -> float:
    mask = trajectory.loss_mask
    sampled = torch.from_numpy(trajectory.behavior_logprobs[mask].copy())
    return float(divergence(sampled, torch.from_numpy(ref_logprobs[mask].copy())).sum())
