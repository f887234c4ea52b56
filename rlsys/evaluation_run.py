"""`rlsys eval`: engines and reward workers, no learner."""

from __future__ import annotations

from typing import Any

from rlsys.build import demands, start_rollout
from rlsys.errors import ConfigError
from rlsys.evaluate import evaluate
from rlsys.prepare import Prepared
from rlsys.runtime.cluster import Cluster
from rlsys.scoring.pool import RewardPool


def evaluation_run(prepared: Prepared) -> dict[str, Any]:
    """Greedy accuracy and mean reward of the model on the held-out prompts."""
    config = prepared.config
    if not prepared.eval_prompts:
        raise ConfigError("data.eval is null: there is nothing to evaluate on")
    wanted = {role: demand for role, demand in demands(config).items() if role in ("rollout", "reward")}
    cluster = Cluster(config.cluster)
    try:
        cluster.connect([demand for role in wanted.values() for demand in role])
        rollout = start_rollout(cluster, prepared, wanted["rollout"])
        scoring = RewardPool(
            cluster,
            config.scoring,
            wanted["reward"],
            config.rewards,
            prepared.model_path,
            config.model.trust_remote_code,
        )
        rollout.start(config.cluster.startup_deadline_s)
        scoring.start(config.cluster.startup_deadline_s)
        result = evaluate(rollout, scoring, prepared.eval_prompts, config, policy_version=rollout.LOADED_VERSION)
        rollout.stop(deadline_s=30.0)
    finally:
        cluster.close()
    return {"accuracy": result.accuracy, "reward_mean": result.reward_mean, "prompts": len(result.rewards)}
