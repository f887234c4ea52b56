"""`rlsys eval`: engines and reward workers, no learner."""

from __future__ import annotations

from typing import Any

from rlsys.build import open_evaluation
from rlsys.errors import ConfigError
from rlsys.evaluate import evaluate
from rlsys.prepare import Prepared
from rlsys.rollout.pool import RolloutPool


def evaluation_run(prepared: Prepared) -> dict[str, Any]:
    """Greedy accuracy and mean reward of the model on the held-out prompts."""
    if not prepared.eval_prompts:
        raise ConfigError("data.eval is null: there is nothing to evaluate on")
    with open_evaluation(prepared) as sampler:
        result = evaluate(sampler, prepared.eval_prompts, prepared.config, policy_version=RolloutPool.LOADED_VERSION)
    return {
        "accuracy": result.accuracy,
        "reward_mean": result.reward_mean,
        "prompts": result.num_prompts,
        "failed": result.num_failed,
    }
