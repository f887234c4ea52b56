"""How far a policy that sampled is from another, over whole responses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rlsys.algorithms import kl
from rlsys.types import Trajectory


def kl_sums(
    divergence: kl.KlFn, groups: Sequence[Sequence[Trajectory]], ref_logprobs: Sequence[Sequence[np.ndarray]]
) -> list[list[float]]:
    """The divergence of the policy that sampled from the reference, summed over each response.

    Args:
        ref_logprobs: of every trajectory of every group, [L] float32.
    """
    return [
        [_kl_sum(divergence, *pair) for pair in zip(group, of_group, strict=True)]
        for group, of_group in zip(groups, ref_logprobs, strict=True)
    ]


def _kl_sum(divergence: kl.KlFn, trajectory: Trajectory, ref_logprobs: np.ndarray) -> float:
    mask = trajectory.loss_mask
    sampled = torch.from_numpy(trajectory.behavior_logprobs[mask].copy())
    return float(divergence(sampled, torch.from_numpy(ref_logprobs[mask].copy())).sum())
