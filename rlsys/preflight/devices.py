"""Checks of the devices: whether the channel for weights fits them, and whether there are enough GPUs."""

from __future__ import annotations

from rlsys.algorithms.requirements import needs_critic, reference_workers
from rlsys.config.cluster_address import cluster_address
from rlsys.config.schema import Config
from rlsys.errors import ConfigError

# Ray's share of the one GPU for each worker with weights.backend=ipc. Three fit: engine, learner and reference. A
# share is for placing workers, not for memory.
GPU_SHARE = 0.3


def check_devices(config: Config, *, training: bool) -> None:
    """Raise ConfigError for a channel that the devices rule out, more GPUs than `cluster.num_gpus`, or no cluster."""
    cluster_address(config.cluster)
    backend, gpus = config.weights.backend, config.cluster.num_gpus
    if backend in ("nccl", "ipc") and gpus == 0:
        raise ConfigError(f"weights.backend={backend} needs GPUs, but cluster.num_gpus=0: use gloo or auto on CPUs")
    if backend == "gloo" and gpus > 0:
        raise ConfigError(
            f"weights.backend=gloo serves engines on CPUs, but cluster.num_gpus={gpus}: use nccl or auto on GPUs"
        )
    if gpus == 0:
        if config.scoring.num_gpus:
            raise ConfigError(
                f"scoring.num_gpus={config.scoring.num_gpus:g} needs GPUs, but cluster.num_gpus=0: set "
                "cluster.num_gpus, or scoring.num_gpus=0"
            )
    elif not training:
        _check_room(config, "the evaluation", {})
    elif backend == "ipc":
        _check_one_gpu(config)
    else:
        _check_room(
            config,
            "the run",
            {
                "learner.num_workers": config.learner.num_workers,
                "reference.num_workers": reference_workers(config),
                "critic.num_workers": config.critic.num_workers if needs_critic(config) else 0,
            },
        )


def _check_room(config: Config, who: str, trained: dict[str, int]) -> None:
    """Raise ConfigError when the engines, the scoring workers and `trained` need more GPUs than there are."""
    rollout, scoring = config.rollout, config.scoring
    # Each rank of an engine, learner, critic or reference takes a whole GPU; scoring workers may share one.
    needed = {
        "rollout.num_workers * rollout.tensor_parallel_size": rollout.num_workers * rollout.tensor_parallel_size,
        "scoring.num_workers * scoring.num_gpus": scoring.num_workers * scoring.num_gpus,
        **trained,
    }
    total = sum(needed.values())
    if total > config.cluster.num_gpus:
        terms = " + ".join(f"{name} = {number:g}" for name, number in needed.items() if number)
        without = "; algorithm.kl.coef=0 needs no reference" if trained.get("reference.num_workers") else ""
        raise ConfigError(
            f"{who} needs {total:g} GPUs ({terms}), but cluster.num_gpus={config.cluster.num_gpus}: raise it, or lower "
            f"one of these{without}"
        )


def _check_one_gpu(config: Config) -> None:
    """Raise ConfigError unless the run fits on the single GPU that `weights.backend=ipc` shares."""
    if needs_critic(config):
        raise ConfigError(
            "weights.backend=ipc shares one GPU among engine, learner and reference, which leaves no room for a "
            "critic: use weights.backend=nccl with more GPUs, or an advantage estimator without a critic"
        )
    # Through IPC handles the engine reads the learner's memory on the same device, so there is one of each.
    values = {
        "rollout.num_workers": config.rollout.num_workers,
        "rollout.tensor_parallel_size": config.rollout.tensor_parallel_size,
        "learner.num_workers": config.learner.num_workers,
        "cluster.num_gpus": config.cluster.num_gpus,
    }
    wrong = [f"{key}={value}" for key, value in values.items() if value != 1]
    if wrong:
        raise ConfigError(f"weights.backend=ipc shares one GPU: set these to 1: {', '.join(wrong)}")
    scoring = config.scoring
    left = 1 - GPU_SHARE * (2 + reference_workers(config))
    if scoring.num_workers * scoring.num_gpus > left:
        raise ConfigError(
            f"scoring.num_workers={scoring.num_workers} with scoring.num_gpus={scoring.num_gpus:g}: weights.backend="
            f"ipc shares one GPU, of which engine, learner and reference leave {left:g} to all scoring workers together"
        )
