"""The plain estimator k1 (J. Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

import torch

from rlsys.algorithms.kl import register


@register("k1")
def k1(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Return `logprob - ref_logprob`, [B, T]; unbiased, of high variance, negative half the time.

    In the loss its gradient has expectation 0, because only the sampled tokens' log-probabilities are differentiated.
    It belongs in the reward.
    """
    return logprobs - ref_logprobs
