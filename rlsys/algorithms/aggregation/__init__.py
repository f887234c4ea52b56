"""From per-token losses to a scalar: `f(per_token [B, T], loss_mask [B, T], totals) -> scalar`.

The denominators come from `totals`, counts over the whole optimizer step. So the scalars of microbatches and ranks
simply add up, and the gradient does not depend on how the step was split.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlsys.registry import Registry

AggregationFn = Callable[..., torch.Tensor]
registry: Registry[AggregationFn] = Registry("aggregation", __name__)
register = registry.register
