"""From configuration to workers: the only place that names concrete ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rlsys import checkpoint
from rlsys.algorithms import advantages
from rlsys.algorithms.advantages import AdvantageFn
from rlsys.config import Config
from rlsys.data.load import PromptStream
from rlsys.errors import DeadlineError, WorkerError
from rlsys.learner.group import LearnerGroup
from rlsys.learner.worker import LearnerSetup
from rlsys.metrics.display import Display
from rlsys.metrics.run_log import RunLog, set_aside
from rlsys.prepare import Prepared
from rlsys.reference.pool import ReferencePool
from rlsys.rollout.pool import RolloutPool
from rlsys.runtime.calls import gather
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.runtime.placement import demands, weight_backend
from rlsys.scoring.pool import RewardPool
from rlsys.types import Sampling
from rlsys.weights.broadcaster import WeightBroadcaster

STOP_S = 30.0
"""Deadline for engines and learner to end by themselves; what is left then is killed."""


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


@contextlib.contextmanager
def open_run(prepared: Prepared, run_dir: Path, display: Display) -> Iterator[Run]:
    """Start Ray and every worker; on leaving, however, end all of them."""
    config = prepared.config
    wanted = demands(config)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(connected(config, wanted))
        rollout = start_rollout(cluster, prepared, wanted["rollout"])
        scoring = start_scoring(cluster, prepared, wanted["reward"])
        learner = LearnerGroup(cluster, _learner_setup(prepared), wanted["learner"])
        reference = _start_reference(cluster, prepared, wanted["reference"])
        _start(cluster, config, rollout, learner, scoring, *([reference] if reference else []))
        weights = WeightBroadcaster(learner, rollout, gather, config.weights, weight_backend(config))
        weights.open()
        state = _restore(config, run_dir, learner, display)
        log = RunLog(run_dir, config.logging, resume_step=state.step)
        stack.callback(log.close)
        yield Run(
            config=config,
            run_dir=run_dir,
            state=state,
            prompts=_prompt_stream(prepared, state),
            sampling=_sampling(config),
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
        _stop(display.say, rollout, learner)


@contextlib.contextmanager
def open_evaluation(prepared: Prepared) -> Iterator[tuple[RolloutPool, RewardPool]]:
    """Engines with the weights of `model.path`, and reward workers: no learner, no reference."""
    config = prepared.config
    wanted = {role: demand for role, demand in demands(config).items() if role in ("rollout", "reward")}
    with connected(config, wanted) as cluster:
        rollout = start_rollout(cluster, prepared, wanted["rollout"])
        scoring = start_scoring(cluster, prepared, wanted["reward"])
        _start(cluster, config, rollout, scoring)
        yield rollout, scoring
        _stop(print, rollout)


def _start(cluster: Cluster, config: Config, *roles: RolloutPool | LearnerGroup | RewardPool | ReferencePool) -> None:
    try:
        for role in roles:
            role.start(config.cluster.startup_deadline_s)
    except DeadlineError as error:
        raise DeadlineError(f"{error}. {cluster.room()}") from error


def _stop(say: Callable[[str], None], *roles: RolloutPool | LearnerGroup) -> None:
    """Everything has been written by now: a role that does not end by itself is worth a word, not the run."""
    for role in roles:
        try:
            role.stop(STOP_S)
        except (DeadlineError, WorkerError) as error:
            say(f"not stopped in order, its processes are killed now: {error}")


@contextlib.contextmanager
def connected(config: Config, wanted: dict[str, list[Demand]]) -> Iterator[Cluster]:
    """Ray with room for `wanted`; every process started through it ends on leaving."""
    cluster = Cluster(config.cluster)
    try:
        cluster.connect([demand for role in wanted.values() for demand in role])
        yield cluster
    finally:
        cluster.close()


def start_rollout(cluster: Cluster, prepared: Prepared, wanted: list[Demand]) -> RolloutPool:
    """The engines; they start building when asked to."""
    config = prepared.config
    rollout = replace(config.rollout, dtype=config.rollout.dtype or config.learner.dtype)
    return RolloutPool(
        cluster,
        rollout,
        wanted,
        prepared.model_path,
        prepared.max_tokens,
        weight_backend(config),
        config.seed,
        config.model.trust_remote_code,
    )


def start_scoring(cluster: Cluster, prepared: Prepared, wanted: list[Demand]) -> RewardPool:
    """The reward workers."""
    config = prepared.config
    return RewardPool(
        cluster, config.scoring, wanted, config.rewards, prepared.model_path, config.model.trust_remote_code
    )


def _start_reference(cluster: Cluster, prepared: Prepared, wanted: list[Demand]) -> ReferencePool | None:
    if not wanted:
        return None
    config = prepared.config
    return ReferencePool(
        cluster,
        config.reference,
        wanted,
        prepared.model_path,
        config.learner.dtype,
        config.rollout.temperature,
        config.model.trust_remote_code,
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


def _prompt_stream(prepared: Prepared, state: checkpoint.RunState) -> PromptStream:
    config = prepared.config
    return PromptStream(
        prepared.train_prompts, seed=config.seed, shuffle=config.data.shuffle, cursor=state.prompt_cursor
    )


def _sampling(config: Config) -> Sampling:
    return Sampling(
        temperature=config.rollout.temperature,
        max_response_tokens=config.rollout.max_response_tokens,
        samples_per_prompt=config.train.samples_per_prompt,
        ignore_eos=config.rollout.ignore_eos,
    )


def _restore(config: Config, run_dir: Path, learner: LearnerGroup, display: Display) -> checkpoint.RunState:
    found = checkpoint.checkpoints(run_dir) if config.resume == "auto" else []
    if not found:
        earlier = set_aside(run_dir)
        if earlier is not None:
            display.say(f"no checkpoint to resume from: starting over; what was there is kept in {earlier}")
        return checkpoint.RunState(step=0, prompt_cursor=0)
    learner.load(str(found[-1]))
    state = checkpoint.load_state(found[-1])
    display.say(f"resuming from {found[-1]} after step {state.step}")
    return state
