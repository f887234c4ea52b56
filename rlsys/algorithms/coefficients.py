"""Adaptive coefficients of the KL penalty and the entropy bonus."""

from __future__ import annotations

from dataclasses import replace

from rlsys.config.algorithm_schema import AlgorithmConfig
from rlsys.types import Coefficients


def initial_coefficients(config: AlgorithmConfig) -> Coefficients:
    """Return the coefficients of a run's first step."""
    return Coefficients(config.kl.coef, config.entropy.coef, entropy_level=config.entropy.coef)


def adapt_coefficients(
    now: Coefficients, config: AlgorithmConfig, *, kl: float | None, entropy: float | None, num_trajectories: int
) -> Coefficients:
    """Return the coefficients of the next step.

    KL (Ziegler et al., arXiv:1909.08593, section 2.2): `coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon`,
    where n counts at most one horizon per step.
    Entropy (Skywork-OR1, arXiv:2505.22312, equation 3.2): the level rises by `delta` while the entropy is at most
    `target`, else it falls, within [0, max_coef]. The bonus is the level after a rise, and 0 after a fall.

    Args:
        now: the coefficients of this step.
        config: the targets; a coefficient without a target stays as it is.
        kl: mean KL per token that this step measured; None if it measured none.
        entropy: mean entropy per token that this step measured; None if it measured none.
        num_trajectories: trajectories that this step trained on (n above).
    """
    if config.kl.target is not None and kl is not None:
        # Clipped, so that one unusual step changes the coefficient by a fifth at most.
        error = min(max(kl / config.kl.target - 1.0, -0.2), 0.2)
        now = replace(now, kl=now.kl * (1.0 + error * min(num_trajectories / config.kl.horizon, 1.0)))
    if config.entropy.target is not None and entropy is not None:
        # The level is remembered while the bonus is off, and the bonus resumes from it.
        is_low = entropy <= config.entropy.target
        change = config.entropy.delta if is_low else -config.entropy.delta
        level = min(max(now.entropy_level + change, 0.0), config.entropy.max_coef)
        now = replace(now, entropy=level if is_low else 0.0, entropy_level=level)
    return now
