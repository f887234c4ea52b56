"""Coefficients that follow what they steer: the KL penalty's and the entropy bonus's."""

from __future__ import annotations

from dataclasses import replace

from rlsys.config import AlgorithmConfig
from rlsys.types import Coefficients


def initial(config: AlgorithmConfig) -> Coefficients:
    """Where a run starts."""
    return Coefficients(config.kl.coef, config.entropy.coef)


def adapted(
    now: Coefficients, config: AlgorithmConfig, *, kl: float | None, entropy: float | None, num_trajectories: int
) -> Coefficients:
    """The next step's, from the mean KL and entropy a token that this one measured (None: not measured).

    KL (Ziegler et al., arXiv:1909.08593, section 2.2): `coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon`.
    Entropy (Skywork-OR1, arXiv:2505.22312, section 4): up by `delta` where it is at most `target`, else down, within
    [0, max_coef].
    """
    if config.kl.target is not None and kl is not None:
        error = min(max(kl / config.kl.target - 1.0, -0.2), 0.2)
        now = replace(now, kl=now.kl * (1.0 + error * num_trajectories / config.kl.horizon))
    if config.entropy.target is not None and entropy is not None:
        change = config.entropy.delta if entropy <= config.entropy.target else -config.entropy.delta
        now = replace(now, entropy=min(max(now.entropy + change, 0.0), config.entropy.max_coef))
    return now
