"""Aggregation of per-token losses, as what a token of each trajectory weighs: `f(lengths [N], groups [N]) -> [N]`.

`lengths[i]` is the number of trained tokens of trajectory i (0 where a response is masked out), `groups[i]` its prompt;
N runs over the whole optimizer update, all ranks and microbatches. The loss is the plain sum of `weight * loss` over
trained tokens, so it does not depend on how the update was split. An aggregation that is defined over a microbatch
registers with `local=True`: it is called with each microbatch's trajectories, and the microbatches are averaged.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlsys.registry import Registry

AggregationFn = Callable[..., torch.Tensor]
registry: Registry[AggregationFn] = Registry("aggregation", __name__)
register = registry.register
