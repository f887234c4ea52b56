"""The environments that workers' processes start with, and what is imported under them ahead of time.

Nothing here imports PyTorch: the command starts with it.
"""

from __future__ import annotations

import os
import platform

from rlsys.config.cluster_address import cluster_address
from rlsys.config.schema import Config
from rlsys.runtime.limits import usable_cores
from rlsys.runtime.preimport import Imports
from rlsys.runtime.preload import engine_preload

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
    return max(1, usable_cores() // num_workers)


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


def worker_env(config: Config, threads: int) -> dict[str, str]:
    """Return the environment of a worker that computes with PyTorch."""
    env = {**QUIET, **keep_freed_memory(platform.libc_ver()[1]), "OMP_NUM_THREADS": str(threads)}
    if config.cluster.num_gpus == 0:
        return env | {"DS_ACCELERATOR": "cpu"}
    return env | {"DS_ACCELERATOR": "cuda"}


def rollout_env(config: Config, engine: int) -> dict[str, str]:
    """Return the environment of one engine."""
    tensor_parallel = config.rollout.tensor_parallel_size
    threads = threads_per_worker(config, config.rollout.num_workers * tensor_parallel, config.rollout.num_threads)
    env = worker_env(config, threads)
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


# What workers import, before anything of Ray, which reads its worker's environment when it is imported, and without
# modules that start threads: a fork has only one.
ENGINE_MODULES = (
    *("numpy", "vllm", "vllm.config", "vllm.v1.worker.cpu_worker", "vllm.v1.core.sched.scheduler"),
    *("vllm.v1.executor.abstract", "vllm.v1.engine"),
)
TORCH_MODULES = (
    *("numpy", "torch._inductor.compile_fx", "transformers.models.auto.modeling_auto"),
    *("peft", "deepspeed"),
)


def worker_imports(config: Config) -> dict[str, Imports]:
    """Return what the workers of each role import; empty where they cannot be forked: on a cluster, and with GPUs."""
    if cluster_address(config.cluster) is not None or config.cluster.num_gpus > 0:
        return {}
    trains = Imports(TORCH_MODULES, worker_env(config, threads_per_worker(config, 1, config.learner.num_threads)))
    engine = Imports(ENGINE_MODULES, rollout_env(config, 0))
    return {"rollout": engine, "learner": trains, "critic": trains, "reference": trains}
