"""Statistics within groups, given back to each member: [N] values and [N] group indices to [N]."""

from __future__ import annotations

import torch


def group_sum(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Sum over the members of each one's group."""
    zeros = values.new_zeros(int(groups.max()) + 1 if groups.numel() else 0)
    return zeros.index_add(0, groups, values)[groups]


def group_size(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Number of members of each one's group, in the dtype of `values`."""
    return group_sum(torch.ones_like(values), groups)


def group_mean(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Mean over each one's group."""
    return group_sum(values, groups) / group_size(values, groups)


def group_std(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Unbiased standard deviation (over n - 1) of each one's group; 0 for a group of one."""
    squares = group_sum((values - group_mean(values, groups)) ** 2, groups)
    return (squares / (group_size(values, groups) - 1).clamp(min=1)).sqrt()


def all_equal(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Whether each one's group has one value only, [N] bool.

    Equality, not a small variance, decides: rounding in a mean must not turn equal rewards into a signal.
    """
    zeros = values.new_zeros(int(groups.max()) + 1 if groups.numel() else 0)
    lowest = zeros.scatter_reduce(0, groups, values, "amin", include_self=False)
    highest = zeros.scatter_reduce(0, groups, values, "amax", include_self=False)
    return (lowest == highest)[groups]
