"""From configuration to workers: the only place that names concrete ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rlsys import checkpoint
from rlsys.algorithms import advantages
from rlsys.algorithms.advantages import AdvantageFn
from rlsys.config import Config
from rlsys.data.load import PromptStream
from rlsys.learner.group import LearnerGroup
from rlsys.learner.worker import LearnerSetup
from rlsys.metrics.display import Display
from rlsys.metrics.run_log import RunLog
from rlsys.prepare import Prepared
from rlsys.reference.pool import ReferencePool
from rlsys.rollout.pool import RolloutPool
from rlsys.runtime.calls import gather
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.scoring.pool import RewardPool
from rlsys.types import Sampling
from rlsys.weights.broadcaster import WeightBroadcaster

QUIET = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


@dataclass
class Run:
    """Everything the loop touches."""

    config: Config
    run_dir: Path
    state: checkpoint.RunState
    prompts: PromptStream
    sampling: Sampling
    advantage: AdvantageFn
    rollout: RolloutPool
    scoring: RewardPool
    reference: ReferencePool | None
    learner: LearnerGroup
    weights: WeightBroadcaster
    log: RunLog
    display: Display
    prepared: Prepared


def weight_backend(config: Config) -> str:
    """`auto` is nccl on GPUs and gloo on CPUs."""
    if config.weights.backend != "auto":
        return config.weights.backend
    return "nccl" if config.cluster.num_gpus > 0 else "gloo"


def threads_per_worker(num_workers: int, wanted: int | None) -> int:
    """OpenMP threads of one worker: roles take turns on a machine, the workers of one role share it."""
    cores = len(os.sched_getaffinity(0))
    return wanted if wanted is not None else max(1, cores // num_workers)


def _env(config: Config, threads: int) -> dict[str, str]:
    env = {**QUIET, "OMP_NUM_THREADS": str(threads)}
    if config.cluster.num_gpus == 0:
        return env | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return env | {"DS_ACCELERATOR": "cuda"}


def _rollout_env(config: Config) -> dict[str, str]:
    tensor_parallel = config.rollout.tensor_parallel_size
    threads = threads_per_worker(config.rollout.num_workers * tensor_parallel, config.rollout.num_threads)
    env = _env(config, threads)
    if config.cluster.num_gpus > 0:
        return env | {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if weight_backend(config) == "ipc" else env
    # Roles take turns on the same cores: engine threads that spin while they wait would hold up the learner's.
    env |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    if tensor_parallel == 1:
        # One process an engine: with two, each spins for a second waiting for the other, on the learner's cores.
        # Left to itself every engine would pin its threads to the same cores.
        return env | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    cores = sorted(os.sched_getaffinity(0))
    binding = "|".join(str(cores[rank % len(cores)]) for rank in range(tensor_parallel))
    return env | {"VLLM_CPU_OMP_THREADS_BIND": binding}


def demands(config: Config) -> dict[str, list[Demand]]:
    """What every worker asks of Ray, by role."""
    shared = weight_backend(config) == "ipc"
    gpu = 0.0 if config.cluster.num_gpus == 0 else 0.3 if shared else 1.0
    rollout, learner, reference = config.rollout, config.learner, config.reference
    learner_env = _env(config, threads_per_worker(learner.num_workers, learner.num_threads))
    reference_env = _env(config, threads_per_worker(reference.num_workers, reference.num_threads))
    with_reference = config.algorithm.kl.coef > 0
    return {
        "rollout": [
            Demand(f"rollout/{i}", rollout.num_cpus, gpu * rollout.tensor_parallel_size, _rollout_env(config))
            for i in range(rollout.num_workers)
        ],
        "learner": [Demand(f"learner/{i}", learner.num_cpus, gpu, learner_env) for i in range(learner.num_workers)],
        "reward": [
            Demand(f"reward/{i}", config.scoring.num_cpus, 0.0, {**QUIET, "OMP_NUM_THREADS": "1"})
            for i in range(config.scoring.num_workers)
        ],
        "reference": [
            Demand(f"reference/{i}", reference.num_cpus, gpu, reference_env)
            for i in range(reference.num_workers if with_reference else 0)
        ],
    }


@contextlib.contextmanager
def open_run(prepared: Prepared, run_dir: Path, display: Display) -> Iterator[Run]:
    """Start Ray and every worker; on leaving, however, end all of them."""
    config = prepared.config
    wanted = demands(config)
    cluster = Cluster(config.cluster)
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.close)
        cluster.connect([demand for role in wanted.values() for demand in role])
        rollout = start_rollout(cluster, prepared, wanted["rollout"])
        scoring = RewardPool(
            cluster,
            config.scoring,
            wanted["reward"],
            config.rewards,
            prepared.model_path,
            config.model.trust_remote_code,
        )
        learner = LearnerGroup(cluster, _learner_setup(prepared), wanted["learner"])
        reference = None
        if wanted["reference"]:
            reference = ReferencePool(
                cluster,
                config.reference,
                wanted["reference"],
                prepared.model_path,
                config.learner.dtype,
                config.rollout.temperature,
                config.model.trust_remote_code,
            )
        deadline_s = config.cluster.startup_deadline_s
        rollout.start(deadline_s)
        learner.start(deadline_s)
        scoring.start(deadline_s)
        if reference is not None:
            reference.start(deadline_s)
        weights = WeightBroadcaster(learner, rollout, gather, config.weights, weight_backend(config))
        weights.open()
        state = _restore(config, run_dir, learner, display)
        log = RunLog(run_dir, config.logging, resume_step=state.step)
        stack.callback(log.close)
        yield Run(
            config=config,
            run_dir=run_dir,
            state=state,
            prompts=PromptStream(
                prepared.train_prompts, seed=config.seed, shuffle=config.data.shuffle, cursor=state.prompt_cursor
            ),
            sampling=Sampling(
                temperature=config.rollout.temperature,
                max_response_tokens=config.rollout.max_response_tokens,
                samples_per_prompt=config.train.samples_per_prompt,
                ignore_eos=config.rollout.ignore_eos,
            ),
            advantage=advantages.registry.component(config.algorithm.advantage),
            rollout=rollout,
            scoring=scoring,
            reference=reference,
            learner=learner,
            weights=weights,
            log=log,
            display=display,
            prepared=prepared,
        )
        rollout.stop(deadline_s=30.0)
        learner.stop(deadline_s=30.0)


def start_rollout(cluster: Cluster, prepared: Prepared, wanted: list[Demand]) -> RolloutPool:
    """The engines; they start building when asked to."""
    config = prepared.config
    rollout = replace(config.rollout, dtype=config.rollout.dtype or config.learner.dtype)
    return RolloutPool(
        cluster, rollout, wanted, prepared.model_path, prepared.context, weight_backend(config), config.seed
    )


def _learner_setup(prepared: Prepared) -> LearnerSetup:
    config = prepared.config
    return LearnerSetup(
        learner=config.learner,
        algorithm=config.algorithm,
        weights=config.weights,
        model_path=prepared.model_path,
        trust_remote_code=config.model.trust_remote_code,
        engine_dtype=config.rollout.dtype or config.learner.dtype,
        temperature=config.rollout.temperature,
        num_steps=config.train.num_steps,
        updates_per_step=config.train.updates_per_step,
        num_engines=config.rollout.num_workers,
        seed=config.seed,
    )


def _restore(config: Config, run_dir: Path, learner: LearnerGroup, display: Display) -> checkpoint.RunState:
    found = checkpoint.checkpoints(run_dir) if config.resume == "auto" else []
    if not found:
        return checkpoint.RunState(step=0, prompt_cursor=0)
    learner.load(str(found[-1]))
    state = checkpoint.load_state(found[-1])
    display.say(f"resuming from {found[-1]} after step {state.step}")
    return state
