"""The start of a run: the workers that the configuration asks for, and the parts of the training loop around them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rlsys.algorithms.requirements import learner_is_reference
from rlsys.build.checkpoints import Checkpoints, find_start, start_coefficients, start_prompts
from rlsys.build.evacuation import Evacuation, evacuation_of
from rlsys.build.finished_groups import FinishedGroups
from rlsys.build.placement import rollout_demand, worker_demands
from rlsys.build.scaling import Scaling
from rlsys.config.schema import Config
from rlsys.config.written import as_written
from rlsys.data.stream import PromptStream
from rlsys.episodes.pool import EpisodePool
from rlsys.episodes.setup import EpisodeSetup
from rlsys.errors import DeadlineError, SuspectPolicyError, WorkerError
from rlsys.evaluation.periodic import PeriodicEvaluation
from rlsys.guards.guards import Guards
from rlsys.learner.critic_group import CriticGroup
from rlsys.learner.learners import Learners
from rlsys.learner.policy_group import PolicyGroup
from rlsys.learner.setup import CriticSetup, PolicySetup
from rlsys.metrics.display import Display
from rlsys.metrics.step import StageClock
from rlsys.orchestrator.experience import ExperienceBuilder
from rlsys.orchestrator.from_config import orchestrator_of, sampler_of, scaler_of, supervisor_of
from rlsys.orchestrator.orchestrator import Orchestrator
from rlsys.orchestrator.router import Router
from rlsys.orchestrator.sampling import GroupSampler
from rlsys.orchestrator.scaling import EngineScaler
from rlsys.orchestrator.supervisor import EngineSupervisor
from rlsys.preflight.prepared import Prepared
from rlsys.recorder import Recorder
from rlsys.reference.policy import FrozenReference, PolicyWithoutAdapter, Reference
from rlsys.reference.pool import ReferencePool
from rlsys.reference.worker import ReferenceSetup
from rlsys.rollout.pool import RolloutPool
from rlsys.rollout.setup import EngineSetup
from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.finished_groups import FinishedGroup, read_groups
from rlsys.run_folder.layout import LOGS
from rlsys.run_folder.metrics import MetricsWriter
from rlsys.run_folder.mirror import mirror_of
from rlsys.run_folder.replay import ReplayFolders
from rlsys.run_folder.rollouts import RolloutWriter
from rlsys.run_folder.timeline import TimelineWriter, timeline_path
from rlsys.runtime.background import Background
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.garbage import collect_rarely, freeze_imported
from rlsys.runtime.memory_use import MemoryUse
from rlsys.runtime.preimport import Preimport
from rlsys.runtime.room import Demand
from rlsys.runtime.timeline_collector import SpanSource, TimelineCollector
from rlsys.scoring.pool import ScoringPool
from rlsys.scoring.worker import ScoringSetup
from rlsys.weights.broadcaster import Broadcaster
from rlsys.weights.from_config import broadcaster_of, canary_of, needs_canary
from rlsys.weights.policy_broadcast import PolicyBroadcast

logger = logging.getLogger(__name__)
# Seconds that engines and learner get to stop by themselves before they are killed.
STOP_S = 30.0


class Role(SpanSource, Protocol):
    """Workers that are started together."""

    async def start(self, deadline_s: float) -> None:
        """Start the workers and return once all of them are ready."""


@dataclass(frozen=True)
class Roles:
    """The workers of a run, for wiring, tests and benchmarks."""

    cluster: Cluster
    rollout: RolloutPool
    scoring: ScoringPool
    policy: PolicyGroup
    critic: CriticGroup | None
    reference: ReferencePool | None  # None without a KL penalty, and with adapters
    episodes: EpisodePool | None = None  # None without an environment

    @property
    def all(self) -> list[Role]:
        """Every role that this run has."""
        every = (self.rollout, self.policy, self.scoring, self.critic, self.reference, self.episodes)
        return [role for role in every if role is not None]


@dataclass
class Run:
    """The parts of a run, as the loop in `rlsys/train.py` uses them; tests and benchmarks drive some of them alone."""

    prepared: Prepared
    roles: Roles
    state: RunState  # where the run started: step 0, or a checkpoint
    clock: StageClock
    prompts: PromptStream
    sampler: GroupSampler
    orchestrator: Orchestrator
    experience: ExperienceBuilder
    learners: Learners
    weights: PolicyBroadcast
    reference: Reference
    evaluation: PeriodicEvaluation
    recorder: Recorder
    guards: Guards
    checkpoints: Checkpoints
    supervisor: EngineSupervisor
    scaling: Scaling
    evacuation: Evacuation

    async def supervise(self, training: Coroutine[Any, Any, None]) -> None:
        """Run the loop beside the groups in flight; raises the failure of either that explains the others.

        A run that ends early, by a failure or a first Ctrl-C, leaves a checkpoint, unless its policy is suspect.
        """
        background = self.roles.cluster.calls.background
        background.start(self.supervisor.watch())
        background.start(self.scaling.watch())
        background.start(self.evacuation.watch())
        background.start(self.roles.cluster.watch())
        try:
            await background.supervise(training)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, Exception):  # now: saving may take minutes, and Ctrl-C meanwhile replaces the error
                logger.error("the run failed: %s: %s", type(error).__name__, str(error).partition("\n")[0])
            async with self.roles.cluster.unhurried():
                await self.checkpoints.rescue(is_suspect=isinstance(error, SuspectPolicyError))
            raise

    async def start(self) -> None:
        """Send the policy to the engines, and evaluate it before the first step."""
        await self.weights.broadcast(self.state.step)
        if self.state.step == 0:
            self.recorder.record_start(await self.evaluation.evaluate(0))

    def steps(self) -> Iterator[int]:
        """Yield the numbers of the steps that are left, until evaluations no longer improve (`train.stop`)."""
        for step in range(self.state.step + 1, self.prepared.config.train.num_steps + 1):
            if self.guards.progress.is_over:
                return
            self.clock.start_step()
            yield step

    async def finish(self) -> None:
        """Wait for the last step's comparisons of weights and its spans on the timeline."""
        await self.weights.finish()
        await self.recorder.finish()


@contextlib.asynccontextmanager
async def open_run(
    prepared: Prepared, run_dir: Path, display: Display, preimport: Preimport | None = None
) -> AsyncIterator[Run]:
    """Start Ray and every worker, and stop all of them on exit; `preimport` has imported their libraries.

    It is the caller's to close. Meanwhile workers that take the place of lost ones are forked too; they would otherwise
    import for ten seconds of processor time, while the others use all cores.
    """
    config = prepared.config
    wanted = worker_demands(config)
    freeze_imported()
    with contextlib.ExitStack() as stack:
        if preimport is not None:
            preimport.start_all()
        cluster = stack.enter_context(connect(config, wanted, run_dir / LOGS, preimport))
        roles = start_roles(cluster, prepared, wanted)
        await _wait_for_start(cluster, config, *roles.all)
        await log_placement(cluster, config, roles.policy, roles.critic, roles.reference)
        broadcaster = broadcaster_of(config, roles.policy, roles.rollout, cluster.calls)
        await broadcaster.open()
        state, folder = find_start(config, run_dir)
        log = MetricsWriter(run_dir, config.logging, resume_step=state.step, settings=asdict(as_written(config)))
        stack.callback(log.close)
        timeline = None
        if config.logging.timeline:
            file = TimelineWriter(timeline_path(run_dir, state.step))
            stack.callback(file.close)
            timeline = TimelineCollector(cluster.calls, roles.all, file.add)
        run = build_run(
            prepared,
            run_dir,
            roles,
            broadcaster,
            state,
            log=log,
            display=display,
            timeline=timeline,
            finished=() if folder is None else read_groups(folder),
        )
        await run.checkpoints.check_shared()
        # After the channel is open and before the first broadcast: the engines get the restored weights with it.
        if folder is not None:
            await run.learners.load(str(folder), state.written_with)
            await run.reference.load(str(folder))
        collect_rarely()  # last: everything that lives as long as the run exists now
        yield run
        await _stop(*(role for role in (roles.rollout, roles.policy, roles.critic) if role is not None))


@contextlib.asynccontextmanager
async def open_evaluation(prepared: Prepared) -> AsyncIterator[tuple[GroupSampler, ScoringPool, Background]]:
    """Start engines with the weights of `model.path`, and scoring workers: no learner, no reference.

    Everything that uses them runs under the background's `supervise`.
    """
    config = prepared.config
    used = ("rollout", "scoring", "episodes")
    wanted = {role: demand for role, demand in worker_demands(config).items() if role in used}
    with connect(config, wanted) as cluster:
        rollout = start_rollout(cluster, prepared, wanted["rollout"])
        scoring = start_scoring(cluster, prepared, wanted["scoring"])
        episodes = start_episodes(cluster, prepared, wanted["episodes"], rollout)
        started: list[Role] = [rollout, scoring] if episodes is None else [rollout, scoring, episodes]
        await _wait_for_start(cluster, config, *started)
        sampler = sampler_of(config, episodes or rollout, scoring.queue)

        async def join(engine: int) -> None:
            """Add it: an engine starts with the weights that are evaluated."""
            rollout.join(engine)

        supervisor = supervisor_of(config, rollout, sampler.router, cluster, join)
        cluster.calls.background.start(supervisor.watch())
        cluster.calls.background.start(cluster.watch())
        yield sampler, scoring, cluster.calls.background
        await _stop(rollout)


@contextlib.contextmanager
def connect(
    config: Config,
    wanted: Mapping[str, list[Demand]],
    log_dir: Path | None = None,
    preimport: Preimport | None = None,
) -> Iterator[Cluster]:
    """Start or join Ray with room for `wanted`; on exit end every worker and leave."""
    cluster = Cluster(config.cluster, log_dir, preimport)
    try:
        cluster.connect([demand for role in wanted.values() for demand in role])
        yield cluster
    finally:
        cluster.close()


def start_roles(cluster: Cluster, prepared: Prepared, wanted: Mapping[str, list[Demand]]) -> Roles:
    """Start a process for every worker; models are loaded when `start` is called."""
    config, source = prepared.config, (prepared.config, prepared.model_path, prepared.max_tokens)
    policy = PolicyGroup(cluster, PolicySetup.from_config(*source), wanted["learner"])
    rollout = start_rollout(cluster, prepared, wanted["rollout"])
    return Roles(
        cluster=cluster,
        rollout=rollout,
        episodes=start_episodes(cluster, prepared, wanted["episodes"], rollout),
        scoring=start_scoring(cluster, prepared, wanted["scoring"]),
        policy=policy,
        critic=CriticGroup(cluster, CriticSetup.from_config(*source), wanted["critic"]) if wanted["critic"] else None,
        reference=ReferencePool(
            cluster,
            ReferenceSetup.from_config(*source),
            config.algorithm.refresh,
            policy.begin_read_weights,
            wanted["reference"],
        )
        if wanted["reference"]
        else None,
    )


async def _wait_for_start(cluster: Cluster, config: Config, *roles: Role) -> None:
    deadline_s = config.cluster.startup_deadline_s
    await cluster.room.wait(deadline_s)
    # All at once: most of it is imports and loading.
    await asyncio.gather(cluster.check_nodes(), *(role.start(deadline_s) for role in roles))
    cluster.has_started()


async def log_placement(
    cluster: Cluster, config: Config, *roles: PolicyGroup | CriticGroup | ReferencePool | None
) -> None:
    """Log what only workers know: the layout that fits their model, and their device."""
    deadline_s = config.cluster.startup_deadline_s
    calls = {name: call for role in roles if role is not None for name, call in role.begin_placement().items()}
    found = await cluster.calls.gather(calls, what="asking for layouts and devices", deadline_s=deadline_s)
    alike: dict[str, list[str]] = {}
    for name, text in found.items():
        alike.setdefault(text, []).append(name)
    logger.info("ready: %s", "; ".join(f"{', '.join(names)}: {text}" for text, names in alike.items()))


async def _stop(*roles: RolloutPool | PolicyGroup | CriticGroup) -> None:
    for role in roles:
        try:
            await role.stop(STOP_S)
        except (DeadlineError, WorkerError) as error:
            # Everything has been written by now, so a warning is enough.
            logger.warning("not stopped in order, its processes are killed now: %s", error)


def build_run(
    prepared: Prepared,
    run_dir: Path,
    roles: Roles,
    broadcaster: Broadcaster,
    state: RunState,
    *,
    log: MetricsWriter,
    display: Display,
    timeline: TimelineCollector | None = None,
    finished: Sequence[FinishedGroup] = (),
) -> Run:
    """Connect the parts of the loop around started workers; `finished` are the checkpoint's groups."""
    config, clock = prepared.config, StageClock()
    dumps = ReplayFolders(run_dir, config.checkpoint.keep, state.step) if config.logging.replay else None
    trained = (roles.policy, roles.critic, start_coefficients(config, state), state.step, dumps)
    learners = Learners(config, clock, *trained)
    reference = _reference(config, roles)
    prompts = start_prompts(prepared, state)
    calls = roles.cluster.calls
    groups = FinishedGroups(config, roles.rollout.trajectories, roles.scoring.text, calls)
    resumed = groups.resume(finished, state, prompts)
    sampler = sampler_of(config, roles.episodes or roles.rollout, roles.scoring.queue)
    orchestrator = orchestrator_of(config, state.step, calls, sampler, reference.queue, prompts, resumed)
    guards = Guards.from_config(config, run_dir, state, roles.rollout.trajectories, roles.scoring.text)
    estimates = partial(calls.read, who="the object store", what="reading value estimates")
    rollouts = RolloutWriter(run_dir, config.logging, roles.scoring.text, roles.rollout.trajectories, estimates)
    measured = (clock, orchestrator, guards, MemoryUse(roles.cluster.workers))
    recorder = Recorder(*measured, log=log, rollouts=rollouts, display=display, timeline=timeline)
    canary = canary_of(prepared, roles.policy, roles.rollout, calls) if needs_canary(config) else None
    weights = PolicyBroadcast(broadcaster, canary, clock, learners, on_cpus=config.cluster.num_gpus == 0)
    supervisor, scaler = _engine_changes(config, roles, sampler.router, weights)
    crews = {"scoring": roles.scoring, "reference": roles.reference, "episodes": roles.episodes}
    evacuation = evacuation_of(config, roles.cluster, scaler, **crews)
    saved = (prepared, run_dir, prompts, orchestrator, learners, reference, recorder)
    mirror, ends_soon = mirror_of(config), evacuation.holds_learners
    checkpoints = Checkpoints(*saved, guards=guards, finished=groups, mirror=mirror, ends_soon=ends_soon)
    return Run(
        prepared=prepared,
        roles=roles,
        state=state,
        clock=clock,
        prompts=prompts,
        sampler=sampler,
        orchestrator=orchestrator,
        experience=ExperienceBuilder(config, clock, lambda: learners.coefficients, roles.critic),
        learners=learners,
        weights=weights,
        reference=reference,
        evaluation=PeriodicEvaluation(config, prepared.eval_sets, sampler, guards.eval_rewards),
        recorder=recorder,
        guards=guards,
        checkpoints=checkpoints,
        supervisor=supervisor,
        scaling=Scaling(config, run_dir, scaler),
        evacuation=evacuation,
    )


def _engine_changes(
    config: Config, roles: Roles, router: Router, weights: PolicyBroadcast
) -> tuple[EngineSupervisor, EngineScaler]:
    """Return what replaces engines, and what lets them join and leave."""
    welcome, farewell = (partial(way, roles.rollout) for way in (weights.welcome, weights.farewell))
    supervisor = supervisor_of(config, roles.rollout, router, roles.cluster, welcome)
    return supervisor, scaler_of(config, roles.rollout, router, supervisor, farewell)


def start_rollout(cluster: Cluster, prepared: Prepared, wanted: list[Demand]) -> RolloutPool:
    """Start the engines' processes."""
    further = partial(rollout_demand, prepared.config)
    return RolloutPool(cluster, EngineSetup.from_prepared(prepared), wanted, further)


def start_episodes(cluster: Cluster, prepared: Prepared, wanted: list[Demand], on: RolloutPool) -> EpisodePool | None:
    """Start the episode workers' processes, which use engines; None without an environment."""
    return EpisodePool(cluster, EpisodeSetup.from_prepared(prepared), wanted, on) if wanted else None


def start_scoring(cluster: Cluster, prepared: Prepared, wanted: list[Demand]) -> ScoringPool:
    """Start the scoring workers' processes."""
    return ScoringPool(cluster, ScoringSetup.from_prepared(prepared), wanted)


def _reference(config: Config, roles: Roles) -> Reference:
    if roles.reference is not None:
        return roles.reference
    if learner_is_reference(config):
        return PolicyWithoutAdapter(roles.policy, roles.cluster.calls.background)
    return FrozenReference()
