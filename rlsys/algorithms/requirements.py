"""Requirements of an algorithm: the roles, extra rollouts and corrections that a run must have for it."""

from __future__ import annotations

from typing import Any

from rlsys.algorithms import advantages
from rlsys.config.learner_schema import LearnerConfig
from rlsys.config.schema import Config


def needs_critic(config: Config) -> bool:
    """Return whether the advantage estimator uses a critic's values."""
    return bool(advantages.registry.fact(str(config.algorithm.advantage["name"]), "critic", False))


def trained_roles(config: Config) -> dict[str, LearnerConfig]:
    """Return the options of the roles that are trained, by role: the learner, and the critic if the run has one."""
    return {"learner": config.learner} | ({"critic": config.critic} if needs_critic(config) else {})


def needs_greedy(config: Config) -> bool:
    """Return whether every prompt also gets a greedy response, as a baseline."""
    return bool(advantages.registry.fact(str(config.algorithm.advantage["name"]), "greedy", False))


def needs_reference_workers(config: Config) -> bool:
    """Return whether the KL penalty needs reference workers; a policy with adapters needs none."""
    return config.algorithm.kl.coef > 0 and config.learner.lora.rank == 0


def reference_workers(config: Config) -> int:
    """Return the number of reference workers that the run starts."""
    return config.reference.num_workers if needs_reference_workers(config) else 0


def learner_is_reference(config: Config) -> bool:
    """Return whether the reference is the policy without its adapter."""
    return config.algorithm.kl.coef > 0 and config.learner.lora.rank > 0


def corrections_of(config: Config) -> list[dict[str, Any]]:
    """Return the configured corrections, or the default ones when `algorithm.corrections` is null.

    The default is a truncated weight where sampling runs ahead of training, otherwise none. The ratio in the policy
    loss has the learner's probabilities before the step as its denominator, but the engine that sampled may be up to
    `max_staleness` versions older. Without a weight for that difference, training four steps behind took 1.5 to 4 times
    as many steps on the quickstart, and did not get there with one seed of three (benchmarks/results/notes.md).
    """
    if config.algorithm.corrections is not None:
        return config.algorithm.corrections
    is_ahead = config.train.max_staleness > 0 and config.train.old_logprobs == "learner"
    return [{"name": "truncate", "level": "token", "high": 2.0}] if is_ahead else []
