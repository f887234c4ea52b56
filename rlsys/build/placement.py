"""Demands of every worker on Ray: CPUs, GPUs, and the environment that its process starts with."""

from __future__ import annotations

from rlsys.algorithms.requirements import needs_critic, reference_workers
from rlsys.build.environment import QUIET, rollout_env, threads_per_worker, worker_env
from rlsys.config.schema import Config
from rlsys.preflight.devices import GPU_SHARE
from rlsys.runtime.room import Demand
from rlsys.weights.backend import weight_backend


def worker_demands(config: Config) -> dict[str, list[Demand]]:
    """Return the demands of every worker, by role."""
    shared = weight_backend(config) == "ipc"
    gpu = 0.0 if config.cluster.num_gpus == 0 else GPU_SHARE if shared else 1.0
    rollout, learner, reference = config.rollout, config.learner, config.reference
    critic = config.critic if needs_critic(config) else None
    learner_env = worker_env(config, threads_per_worker(config, learner.num_workers, learner.num_threads))
    critic_env = learner_env
    if critic is not None:
        critic_env = worker_env(config, threads_per_worker(config, critic.num_workers, critic.num_threads))
    reference_threads = threads_per_worker(config, reference.num_workers, reference.num_threads)
    reference_env = worker_env(config, reference_threads)
    return {
        "rollout": [
            Demand(f"rollout/{i}", rollout.num_cpus, gpu * rollout.tensor_parallel_size, rollout_env(config, i))
            for i in range(rollout.num_workers)
        ],
        "learner": [Demand(f"learner/{i}", learner.num_cpus, gpu, learner_env) for i in range(learner.num_workers)],
        "critic": [Demand(f"critic/{i}", critic.num_cpus, gpu, critic_env) for i in range(critic.num_workers)]
        if critic is not None
        else [],
        "scoring": [
            Demand(f"scoring/{i}", config.scoring.num_cpus, config.scoring.num_gpus, {**QUIET, "OMP_NUM_THREADS": "1"})
            for i in range(config.scoring.num_workers)
        ],
        "reference": [
            Demand(f"reference/{i}", reference.num_cpus, gpu, reference_env) for i in range(reference_workers(config))
        ],
    }
