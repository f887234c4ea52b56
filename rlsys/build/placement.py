"""Demands of every worker on Ray: CPUs, GPUs, and the environment that its process starts with."""

from __future__ import annotations

import os
import platform

from rlsys.algorithms.requirements import needs_critic, reference_workers
from rlsys.config.schema import Config
from rlsys.preflight.devices import GPU_SHARE
from rlsys.runtime.preload import engine_preload
from rlsys.runtime.room import Demand
from rlsys.weights.backend import weight_backend

QUIET = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

# First glibc that takes any threshold. Earlier ones refuse values above 32 MiB, and then use the smallest.
ANY_THRESHOLD = (2, 35)


def threads_per_worker(config: Config, num_workers: int, wanted: int | None) -> int:
    """Return the OpenMP threads of one of a role's `num_workers` processes.

    Synchronous roles take turns on a machine, so the workers of one role share its cores. When sampling runs ahead of
    training, engines and learner work at the same time and share the cores among all of their workers.
    """
    if wanted is not None:
        return wanted
    if config.train.max_staleness > 0:
        engines = config.rollout.num_workers * config.rollout.tensor_parallel_size
        num_workers = max(num_workers, engines + config.learner.num_workers)
    return max(1, len(os.sched_getaffinity(0)) // num_workers)


def keep_freed_memory(glibc: str) -> dict[str, str]:
    """Return an environment that makes glibc's malloc keep freed memory for the process.

    Activations of one microbatch are freed and allocated again by the next, packed weights of one policy version by
    the next. If they went back to the system each time, every page would be mapped and cleared anew: about a tenth of
    an update, and a third of a reload (benchmarks/results/notes.md). Huge pages, where the system allows them, are
    mapped 512 at once. Engines that preload another malloc ignore it.

    Args:
        glibc: version on the driver's machine, assumed on all nodes; empty for another C library.
    """
    if not glibc:
        return {}
    is_free = tuple(map(int, glibc.split(".")[:2])) >= ANY_THRESHOLD
    given = [os.environ["GLIBC_TUNABLES"]] if os.environ.get("GLIBC_TUNABLES") else []
    values = {"hugetlb": 1, "mmap_threshold": 2**32 if is_free else 2**25, "trim_threshold": 2**40}
    ours = [f"glibc.malloc.{name}={value}" for name, value in values.items()]
    return {"GLIBC_TUNABLES": ":".join([*ours, *given])}


def _env(config: Config, threads: int) -> dict[str, str]:
    env = {**QUIET, **keep_freed_memory(platform.libc_ver()[1]), "OMP_NUM_THREADS": str(threads)}
    if config.cluster.num_gpus == 0:
        return env | {"DS_ACCELERATOR": "cpu"}
    return env | {"DS_ACCELERATOR": "cuda"}


def _rollout_env(config: Config, engine: int) -> dict[str, str]:
    tensor_parallel = config.rollout.tensor_parallel_size
    threads = threads_per_worker(config, config.rollout.num_workers * tensor_parallel, config.rollout.num_threads)
    env = _env(config, threads)
    if config.cluster.num_gpus > 0:
        return env
    # Roles take turns on the same cores: engine threads that spin while they wait would slow the learner down.
    env |= {"OMP_WAIT_POLICY": "PASSIVE"} | (engine_preload() if config.rollout.preload else {})
    if tensor_parallel == 1:
        # Without the first vLLM would give the model a process of its own on CPUs, to set its OpenMP's environment,
        # which is set here; without the second every engine would pin its threads to the same cores.
        return env | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    ranks = range(engine * tensor_parallel, (engine + 1) * tensor_parallel)
    return env | {"VLLM_CPU_OMP_THREADS_BIND": "|".join(_cores_of(rank, threads) for rank in ranks)}


def _cores_of(rank: int, threads: int) -> str:
    """Return the cores of one rank among the ranks of all engines: neighbours, without overlap while cores last.

    A rank runs one thread per core, so `check_machine` refuses more threads than cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(str(cores[(rank * threads + thread) % len(cores)]) for thread in range(threads))


def worker_demands(config: Config) -> dict[str, list[Demand]]:
    """Return the demands of every worker, by role."""
    shared = weight_backend(config) == "ipc"
    gpu = 0.0 if config.cluster.num_gpus == 0 else GPU_SHARE if shared else 1.0
    rollout, learner, reference = config.rollout, config.learner, config.reference
    critic = config.critic if needs_critic(config) else None
    learner_env = _env(config, threads_per_worker(config, learner.num_workers, learner.num_threads))
    critic_env = learner_env
    if critic is not None:
        critic_env = _env(config, threads_per_worker(config, critic.num_workers, critic.num_threads))
    reference_threads = threads_per_worker(config, reference.num_workers, reference.num_threads)
    reference_env = _env(config, reference_threads)
    return {
        "rollout": [
            Demand(f"rollout/{i}", rollout.num_cpus, gpu * rollout.tensor_parallel_size, _rollout_env(config, i))
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
