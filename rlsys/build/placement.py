"""Demands of every worker on Ray: CPUs, GPUs, and the environment that its process starts with."""

from __future__ import annotations

from rlsys.algorithms.requirements import needs_critic, reference_workers
from rlsys.build.environment import QUIET, rollout_env, threads_per_worker, worker_env
from rlsys.config.cluster_address import cluster_address
from rlsys.config.schema import Config
from rlsys.preflight.devices import GPU_SHARE
from rlsys.runtime.room import Demand
from rlsys.weights.backend import weight_backend


def worker_demands(config: Config) -> dict[str, list[Demand]]:
    """Return the demands of every worker, by role."""
    gpu, learner, reference = _gpu(config), config.learner, config.reference
    critic = config.critic if needs_critic(config) else None
    learner_env = worker_env(config, threads_per_worker(config, learner.num_workers, learner.num_threads))
    critic_env = learner_env
    if critic is not None:
        critic_env = worker_env(config, threads_per_worker(config, critic.num_workers, critic.num_threads))
    reference_threads = threads_per_worker(config, reference.num_workers, reference.num_threads)
    reference_env = worker_env(config, reference_threads)
    return {
        "rollout": [rollout_demand(config, i) for i in range(config.rollout.num_workers)],
        "learner": [Demand(f"learner/{i}", learner.num_cpus, gpu, learner_env) for i in range(learner.num_workers)],
        "critic": [Demand(f"critic/{i}", critic.num_cpus, gpu, critic_env) for i in range(critic.num_workers)]
        if critic is not None
        else [],
        "scoring": [
            Demand(f"scoring/{i}", config.scoring.num_cpus, config.scoring.num_gpus, {**QUIET, "OMP_NUM_THREADS": "1"})
            for i in range(config.scoring.num_workers)
        ],
        "episodes": [
            Demand(f"episodes/{i}", config.episodes.num_cpus, 0.0, {**QUIET, "OMP_NUM_THREADS": "1"})
            for i in range(config.episodes.num_workers if config.has_episodes else 0)
        ],
        "reference": [
            Demand(f"reference/{i}", reference.num_cpus, gpu, reference_env) for i in range(reference_workers(config))
        ],
    }


def rollout_demand(config: Config, engine: int) -> Demand:
    """Return the demand of an engine, be it one that the run starts with or one that joins later.

    A local Ray has as many logical CPUs as the workers asked for at its start, and they share the physical ones: an
    engine that joins shares them too. GPUs it needs of its own anywhere.
    """
    rollout = config.rollout
    is_counted = engine < rollout.num_workers or cluster_address(config.cluster) is not None
    gpus = _gpu(config) * rollout.tensor_parallel_size
    return Demand(f"rollout/{engine}", rollout.num_cpus if is_counted else 0.0, gpus, rollout_env(config, engine))


def _gpu(config: Config) -> float:
    """Return the GPUs of one rank."""
    if config.cluster.num_gpus == 0:
        return 0.0
    return GPU_SHARE if weight_backend(config) == "ipc" else 1.0
