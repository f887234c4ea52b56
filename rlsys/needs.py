"""What an algorithm asks of a run: which roles and which extra rollouts."""

from __future__ import annotations

from rlsys.algorithms import advantages
from rlsys.config import Config


def needs_critic(config: Config) -> bool:
    """Whether the advantage estimator is made of a critic's values."""
    return bool(advantages.registry.fact(str(config.algorithm.advantage["name"]), "critic", False))


def needs_greedy(config: Config) -> bool:
    """Whether every prompt also gets a greedy response, as a baseline."""
    return bool(advantages.registry.fact(str(config.algorithm.advantage["name"]), "greedy", False))
