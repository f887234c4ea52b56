"""Equal weight for every prompt: token mean over its responses, then mean over prompts.

LitePPO (arXiv:2508.08221) calls the inner mean group-level.
"""

from __future__ import annotations

import torch

from rlsys.algorithms.aggregation import register
from rlsys.algorithms.grouped import group_sum


@register("prompt_mean")
def prompt_mean(lengths: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Return 1 / (tokens of the group * groups of the update). [N] int64, [N] int64 -> [N] float64."""
    num_groups = max(len(groups.unique()), 1)
    return 1.0 / (group_sum(lengths.double(), groups).clamp(min=1) * num_groups)
