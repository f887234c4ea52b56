"""Which numbers of a configuration make sense at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.config.schema import Config
from rlsys.errors import ConfigError, nearest

AT_LEAST: dict[str, float] = {
    "seed": 0,
    "train.num_steps": 1,
    "train.prompts_per_step": 1,
    "train.samples_per_prompt": 1,
    "train.updates_per_step": 1,
    "train.minibatches_per_step": 1,
    "train.critic_warmup_steps": 0,
    "train.max_nonfinite_steps": 1,
    "train.max_staleness": 0,
    "data.eval_limit": 1,
    "data.max_prompt_tokens": 1,
    "model.build.warmup.max_steps": 0,
    "rollout.num_workers": 1,
    "rollout.tensor_parallel_size": 1,
    "rollout.max_response_tokens": 1,
    "rollout.max_num_seqs": 1,
    "rollout.num_cpus": 0,
    "rollout.num_threads": 1,
    "rollout.max_in_flight": 1,
    "rollout.linger_s": 0,
    "learner.num_workers": 1,
    "learner.lr": 0,
    "learner.warmup_steps": 0,
    "learner.weight_decay": 0,
    "learner.max_grad_norm": 0,
    "learner.lora.rank": 0,
    "learner.lora.alpha": 1,
    "learner.num_cpus": 0,
    "learner.num_threads": 1,
    "scoring.num_workers": 1,
    "scoring.max_unscored_steps": 1,
    "scoring.num_cpus": 0,
    "scoring.num_gpus": 0,
    "algorithm.kl.coef": 0,
    "algorithm.entropy.coef": 0,
    "algorithm.entropy.target": 0,
    "algorithm.entropy.delta": 0,
    "algorithm.entropy.max_coef": 0,
    "algorithm.groups.oversample": 1,
    "algorithm.groups.max_tries": 1,
    "algorithm.refresh.every": 0,
    "weights.bucket_mib": 1,
    "eval.every": 0,
    "eval.max_response_tokens": 1,
    "eval.num_samples": 0,
    "checkpoint.every": 0,
    "checkpoint.keep": 1,
    "cluster.num_gpus": 0,
    "logging.rollouts_every": 0,
}
REFERENCE_AT_LEAST: dict[str, float] = {"reference.num_workers": 1, "reference.num_cpus": 0, "reference.num_threads": 1}
"""Of a role that is not started when `algorithm.kl.coef` is 0."""
CRITIC_AT_LEAST: dict[str, float] = {
    "critic.num_workers": 1,
    "critic.lr": 0,
    "critic.warmup_steps": 0,
    "critic.weight_decay": 0,
    "critic.max_grad_norm": 0,
    "critic.num_cpus": 0,
    "critic.num_threads": 1,
}
"""Of a role that only an advantage estimator made of values starts."""
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
    "critic.eps",
    "critic.value_clip",
    "critic.deadline_s",
    "algorithm.kl.target",
    "algorithm.kl.horizon",
    "algorithm.entropy.top_quantile",
    "algorithm.refresh.alpha",
    "weights.max_logprob_diff",
    "weights.deadline_s",
    "eval.temperature",
    "eval.confidence",
    "cluster.startup_deadline_s",
)


AT_MOST: dict[str, float] = {
    "eval.confidence": 0.9999,
    "algorithm.entropy.top_quantile": 1,
    "algorithm.refresh.alpha": 1,
}


def check_bounds(config: Config, *, with_critic: bool) -> None:
    """Raise ConfigError naming the first value out of bounds or not a number; null passes where it is allowed."""
    least = AT_LEAST | (REFERENCE_AT_LEAST if config.algorithm.kl.coef > 0 and config.learner.lora.rank == 0 else {})
    least |= CRITIC_AT_LEAST if with_critic else {}
    for key, bound in least.items():
        value = _value(config, key)
        if value is not None and not value >= bound:
            raise ConfigError(f"{key}={value}: must be at least {bound:g}")
    for key in ABOVE_ZERO:
        value = _value(config, key)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{key}={value}: must be positive")
    for key, bound in AT_MOST.items():
        if not _value(config, key) <= bound:
            raise ConfigError(f"{key}={_value(config, key)}: must be at most {bound:g}")
    if not config.rollout.temperature > 0:
        raise ConfigError(
            f"rollout.temperature={config.rollout.temperature}: training samples need a positive temperature "
            "(evaluation is greedy by itself)"
        )


def one_of(key: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    """Raise ConfigError with the nearest match unless `value` is a known one."""
    if value not in known:
        raise ConfigError(f"{key}={value}: {nearest(value, known)} (known: {', '.join(known)})")


def _value(config: Config, key: str) -> Any:
    node: Any = config
    for name in key.split("."):
        node = getattr(node, name)
    return node
