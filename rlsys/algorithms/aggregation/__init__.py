"""Aggregation of per-token losses: `f(lengths [N], groups [N]) -> [N]`, the weight of a token of each trajectory.

`lengths[i]` is the number of trained tokens of trajectory i (0 where a response is masked out), `groups[i]` its prompt.
The N trajectories are those of the whole optimizer update, of all ranks and microbatches. The loss is the plain sum of
`weight * loss` over trained tokens, so it does not depend on how the update was split.

An aggregation that is defined over a microbatch registers with `local=True`: it is called with the trajectories of each
microbatch, and the microbatches are averaged. The losses themselves belong to `policy_losses`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlsys.registry import Registry

AggregationFn = Callable[..., torch.Tensor]
registry: Registry[AggregationFn] = Registry("aggregation", __name__)
register = registry.register
