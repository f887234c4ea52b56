"""Coefficients that follow what they steer: the KL penalty's and the entropy bonus's."""

from __future__ import annotations

from dataclasses import replace

from rlsys.config.schema import AlgorithmConfig
from rlsys.types import Coefficients


def initial(config: AlgorithmConfig) -> Coefficients:
    """Where a run starts."""
    return Coefficients(config.kl.coef, config.entropy.coef, config.entropy.coef)


def adapted(
    now: Coefficients, config: AlgorithmConfig, *, kl: float | None, entropy: float | None, num_trajectories: int
) -> Coefficients:
    """The next step's, from the mean KL and entropy a token that this one measured (None: not measured).

    KL (Ziegler et al., arXiv:1909.08593, section 2.2): `coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon`,
    with at most one horizon a step.
    Entropy (Skywork-OR1, arXiv:2505.22312, equation 3.2): the level goes up by `delta` where the entropy is at most
    `target`, else down, within [0, max_coef]; the bonus is the level after the former, and nothing after the latter.
    """
    if config.kl.target is not None and kl is not None:
        error = min(max(kl / config.kl.target - 1.0, -0.2), 0.2)
        now = replace(now, kl=now.kl * (1.0 + error * min(num_trajectories / config.kl.horizon, 1.0)))
    if config.entropy.target is not None and entropy is not None:
        is_low = entropy <= config.entropy.target
        change = config.entropy.delta if is_low else -config.entropy.delta
        level = min(max(now.entropy_level + change, 0.0), config.entropy.max_coef)
        now = replace(now, entropy=level if is_low else 0.0, entropy_level=level)
    return now
