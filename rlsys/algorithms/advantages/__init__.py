"""Advantage estimators: `f(rewards [N], groups [N], *, options) -> advantages [N]`, float32.

`groups[i]` is the index of the prompt that trajectory i was sampled from. Only trajectories with a valid reward come
in, so a group may have fewer than G members. An estimator whose baseline is the group's own mean registers with
`min_group_size=2`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlsys.registry import Registry

AdvantageFn = Callable[..., torch.Tensor]
registry: Registry[AdvantageFn] = Registry("advantage estimator", __name__)
register = registry.register
