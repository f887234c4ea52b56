"""Statistics of groups, returned for each member: values [N] and group indices [N] to [N].

Example: values 1 3 5 in groups 0 0 1 have the group means 2 2 5.
"""

from __future__ import annotations

import torch


def group_sum(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the sum over each member's group."""
    zeros = values.new_zeros(int(groups.max()) + 1 if groups.numel() else 0)  # one per group
    return zeros.index_add(0, groups, values)[groups]


def group_size(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the size of each member's group, in the dtype of `values`."""
    return group_sum(torch.ones_like(values), groups)


def group_mean(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the mean over each member's group."""
    return group_sum(values, groups) / group_size(values, groups)


def group_std(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return the unbiased standard deviation (over n - 1) of each member's group; 0 for a group of one."""
    # Two passes: sum(x^2) - n mean^2 would cancel for rewards that are large and close together.
    squares = group_sum((values - group_mean(values, groups)) ** 2, groups)
    return (squares / (group_size(values, groups) - 1).clamp(min=1)).sqrt()


def all_equal(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return whether all values of each member's group are equal, [N] bool.

    Exact equality decides, not a small variance: rounding in a mean must not turn equal rewards into a signal.
    """
    zeros = values.new_zeros(int(groups.max()) + 1 if groups.numel() else 0)
    lowest = zeros.scatter_reduce(0, groups, values, "amin", include_self=False)
    highest = zeros.scatter_reduce(0, groups, values, "amax", include_self=False)
    return (lowest == highest)[groups]
