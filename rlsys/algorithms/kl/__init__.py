"""Estimators of KL(policy || reference) from sampled tokens: `f(logprobs, ref_logprobs) -> [B, T]` float32.

The coefficient, its adaptation, and whether the KL is part of the loss or of the reward do not belong here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rlsys.registry import Registry

KlFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
registry: Registry[KlFn] = Registry("KL estimator", __name__)
register = registry.register
