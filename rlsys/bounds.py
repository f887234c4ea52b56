"""Which numbers of a configuration make sense at all."""

from __future__ import annotations

import math
from typing import Any

from rlsys.config import Config
from rlsys.errors import ConfigError

AT_LEAST: dict[str, float] = {
    "seed": 0,
    "train.num_steps": 1,
    "train.prompts_per_step": 1,
    "train.samples_per_prompt": 1,
    "train.updates_per_step": 1,
    "data.eval_limit": 1,
    "model.build.warmup.max_steps": 0,
    "rollout.num_workers": 1,
    "rollout.tensor_parallel_size": 1,
    "rollout.max_response_tokens": 1,
    "rollout.max_num_seqs": 1,
    "rollout.num_cpus": 0,
    "rollout.num_threads": 1,
    "learner.num_workers": 1,
    "learner.lr": 0,
    "learner.warmup_steps": 0,
    "learner.weight_decay": 0,
    "learner.max_grad_norm": 0,
    "learner.num_cpus": 0,
    "learner.num_threads": 1,
    "scoring.num_workers": 1,
    "scoring.num_cpus": 0,
    "algorithm.kl.coef": 0,
    "weights.bucket_mib": 1,
    "eval.every": 0,
    "eval.max_response_tokens": 1,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "cluster.num_gpus": 0,
    "logging.rollouts_every": 0,
}
REFERENCE_AT_LEAST: dict[str, float] = {"reference.num_workers": 1, "reference.num_cpus": 0, "reference.num_threads": 1}
"""Of a role that is not started when `algorithm.kl.coef` is 0."""
ABOVE_ZERO = (
    "rollout.kv_cache_gib",
    "rollout.gpu_memory_utilization",
    "rollout.deadline_s",
    "learner.eps",
    "learner.deadline_s",
    "reference.deadline_s",
    "scoring.function_deadline_s",
    "scoring.row_deadline_s",
    "scoring.deadline_s",
    "weights.max_logprob_diff",
    "weights.deadline_s",
    "cluster.startup_deadline_s",
)


def check_bounds(config: Config) -> None:
    """Raise ConfigError naming the first value that is too small or not a number; null passes where it is allowed."""
    least = AT_LEAST | (REFERENCE_AT_LEAST if config.algorithm.kl.coef > 0 else {})
    for key, bound in least.items():
        value = _value(config, key)
        if value is not None and not value >= bound:
            raise ConfigError(f"{key}={value}: must be at least {bound:g}")
    for key in ABOVE_ZERO:
        value = _value(config, key)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{key}={value}: must be positive")
    if not config.rollout.temperature > 0:
        raise ConfigError(
            f"rollout.temperature={config.rollout.temperature}: training samples need a positive temperature "
            "(evaluation is greedy by itself)"
        )


def _value(config: Config, key: str) -> Any:
    node: Any = config
    for name in key.split("."):
        node = getattr(node, name)
    return node
