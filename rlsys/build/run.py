"""From configuration to workers: the only place that names concrete ones."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlsys.algorithms.coefficients import initial
from rlsys.algorithms.requirements import needs_critic, needs_greedy
from rlsys.build.placement import demands, weight_backend
from rlsys.config.schema import Config
from rlsys.data.stream import PromptStream
from rlsys.errors import DeadlineError, WorkerError
from rlsys.guards.first_failures import FirstFailures
from rlsys.guards.missing_rewards import Unscored, unscored_steps
from rlsys.guards.nonfinite import NonFiniteGuard
from rlsys.learner.critic_group import CriticGroup
from rlsys.learner.critic_worker import CriticSetup
from rlsys.learner.group import LearnerGroup
from rlsys.learner.ranks import GangGroup
from rlsys.learner.worker import LearnerSetup
from rlsys.metrics.display import Display
from rlsys.orchestrator.admission import Ledger
from rlsys.orchestrator.experience import CreditAssignment
from rlsys.orchestrator.pipeline import Pipeline
from rlsys.orchestrator.sampler import Sampler
from rlsys.orchestrator.scheduler import Scheduler
from rlsys.preflight.prepare import Prepared
from rlsys.reference.pool import REFERENCE_FILE, ReferencePool
from rlsys.rewards.entry import wants_whole_groups
from rlsys.rollout.adapters import AdapterSlots
from rlsys.rollout.pool import RolloutPool
from rlsys.rollout.worker import EngineModel
from rlsys.run_folder import checkpoint
from rlsys.run_folder.metrics import MetricsWriter, set_aside
from rlsys.run_folder.rollouts import Transcript
from rlsys.run_folder.timeline import TimelineWriter, timeline_path
from rlsys.runtime.calls import Calls, fetch
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.runtime.lanes import Lanes
from rlsys.scoring.pool import RewardPool
from rlsys.scoring.worker import ScoringSetup
from rlsys.types import Coefficients, Sampling
from rlsys.weights.broadcaster import AdapterBroadcaster, WeightBroadcaster
from rlsys.weights.canary import Probe, probe_text
from rlsys.weights.verify import bound_of

STOP_S = 30.0
"""Deadline for engines and learner to end by themselves; what is left then is killed."""


@dataclass
class Run:
    """Everything the loop touches."""

    config: Config
    run_dir: Path
    state: checkpoint.RunState
    prompts: PromptStream
    pipeline: Pipeline
    calls: Calls
    sampler: Sampler
    rollout: RolloutPool
    scoring: RewardPool
    credit: CreditAssignment
    coefficients: Coefficients
    guard: NonFiniteGuard
    unscored: Unscored  # steps
    unscored_evals: Unscored
    reference: ReferencePool | None
    learner: LearnerGroup
    critic: CriticGroup | None
    weights: WeightBroadcaster | AdapterBroadcaster
    probe: Probe | None  # where sampling runs ahead, or adapters travel
    log: MetricsWriter
    transcript: Transcript
    failures: FirstFailures
    lanes: Lanes | None  # of the timeline, where one is written
    display: Display
    prepared: Prepared

    def save(self, folder: str) -> None:
        """Everything that training changes, into one checkpoint."""
        self.learner.save(folder)
        if self.critic is not None:
            self.critic.save(folder)
        if self.reference is not None and not self.reference.is_initial:
            self.reference.save(folder)


@contextlib.contextmanager
def open_run(prepared: Prepared, run_dir: Path, display: Display) -> Iterator[Run]:
    """Start Ray and every worker; on leaving, however, end all of them."""
    config = prepared.config
    wanted = demands(config)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(connected(config, wanted))
        rollout = start_rollout(cluster, prepared, wanted["rollout"])
        scoring = start_scoring(cluster, prepared, wanted["reward"])
        learner = LearnerGroup(cluster, learner_setup(prepared), wanted["learner"])
        critic = CriticGroup(cluster, _critic_setup(prepared), wanted["critic"]) if wanted["critic"] else None
        reference = _start_reference(cluster, prepared, wanted["reference"])
        roles = [rollout, learner, scoring, *(role for role in (critic, reference) if role is not None)]
        _start(cluster, config, *roles)
        weights = build_broadcaster(cluster.calls, config, learner, rollout)
        weights.open()
        probed = config.train.max_staleness > 0 or config.learner.lora.rank > 0
        probe = build_probe(cluster.calls, prepared, learner, rollout) if probed else None
        state, folder = _newest(config, run_dir, display)
        if folder is not None:
            _restore(folder, learner, critic, reference)
        log = MetricsWriter(run_dir, config.logging, resume_step=state.step, settings=asdict(config))
        stack.callback(log.close)
        lanes = None
        if config.logging.timeline:
            timeline = TimelineWriter(timeline_path(run_dir, state.step))
            stack.callback(timeline.close)
            lanes = Lanes(cluster.calls, roles, timeline.add)
        prompts = _prompt_stream(prepared, state, display.say)
        sampler = build_sampler(cluster.calls, config, rollout, scoring)
        yield Run(
            config=config,
            run_dir=run_dir,
            state=state,
            prompts=prompts,
            pipeline=build_pipeline(config, state.step, cluster.calls, sampler, reference, prompts),
            calls=cluster.calls,
            sampler=sampler,
            rollout=rollout,
            scoring=scoring,
            credit=CreditAssignment(config),
            coefficients=start_coefficients(config, state),
            guard=NonFiniteGuard(run_dir, config.train.max_nonfinite_steps, rollout.trajectories, scoring.text, state),
            unscored=unscored_steps(config, state, display.say),
            unscored_evals=Unscored("eval/unscored", config.scoring.max_unscored_steps, display.say),
            reference=reference,
            learner=learner,
            critic=critic,
            weights=weights,
            probe=probe,
            log=log,
            transcript=Transcript(run_dir, config.logging, scoring.text, rollout.trajectories, _fetched_estimates),
            failures=FirstFailures(display.say),
            lanes=lanes,
            display=display,
            prepared=prepared,
        )
        if lanes is not None:
            lanes.finish()
        _stop(display.say, rollout, learner, *([critic] if critic is not None else []))


@contextlib.contextmanager
def open_evaluation(prepared: Prepared) -> Iterator[Sampler]:
    """Engines with the weights of `model.path`, and reward workers: no learner, no reference."""
    config = prepared.config
    wanted = {role: demand for role, demand in demands(config).items() if role in ("rollout", "reward")}
    with connected(config, wanted) as cluster:
        rollout = start_rollout(cluster, prepared, wanted["rollout"])
        scoring = start_scoring(cluster, prepared, wanted["reward"])
        _start(cluster, config, rollout, scoring)
        yield build_sampler(cluster.calls, config, rollout, scoring)
        _stop(print, rollout)


def _start(cluster: Cluster, config: Config, *roles: RolloutPool | GangGroup | RewardPool | ReferencePool) -> None:
    try:
        for role in roles:
            role.start(config.cluster.startup_deadline_s)
    except DeadlineError as error:
        raise DeadlineError(f"{error}. {cluster.room()}") from error


def _stop(say: Callable[[str], None], *roles: RolloutPool | GangGroup) -> None:
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
        EngineModel(prepared.model_path, prepared.max_tokens, config.model.trust_remote_code, adapter_slots(config)),
        weight_backend(config),
        config.seed,
    )


def adapter_slots(config: Config) -> AdapterSlots | None:
    """What engines keep ready for adapters; None where they serve none."""
    if not config.learner.lora.syncs_adapter_only:
        return None
    lora = config.learner.lora
    quantization = None if lora.quantize_base is None else "bitsandbytes"
    return AdapterSlots(lora.rank, 1 + config.train.max_staleness, config.model.adapter, quantization)


def start_scoring(cluster: Cluster, prepared: Prepared, wanted: list[Demand]) -> RewardPool:
    """The reward workers."""
    return RewardPool(cluster, ScoringSetup.of(prepared), wanted)


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
        config.algorithm.kl.name if config.algorithm.kl.place == "reward" else None,
        config.model.trust_remote_code,
    )


def learner_setup(prepared: Prepared) -> LearnerSetup:
    """The learner ranks' part of the configuration."""
    config = prepared.config
    return LearnerSetup(
        learner=config.learner,
        algorithm=config.algorithm,
        weights=config.weights,
        model_path=prepared.model_path,
        trust_remote_code=config.model.trust_remote_code,
        chat_template=config.model.chat_template,
        adapter=config.model.adapter,
        engine_dtype=config.rollout.dtype or config.learner.dtype,
        temperature=config.rollout.temperature,
        num_updates=num_updates(config, config.critic.head_start_steps if needs_critic(config) else 0),
        passes=config.train.updates_per_step,
        old_logprobs=config.train.old_logprobs,
        kv_is_kept=config.rollout.inflight_kv == "keep",
        seed=config.seed,
    )


def _critic_setup(prepared: Prepared) -> CriticSetup:
    config = prepared.config
    return CriticSetup(
        critic=config.critic,
        algorithm=config.algorithm,
        model_path=prepared.model_path,
        trust_remote_code=config.model.trust_remote_code,
        num_updates=num_updates(config),
        passes=config.train.updates_per_step,
        seed=config.seed,
    )


def num_updates(config: Config, steps_without: int = 0) -> int:
    """Optimizer updates of the whole run, but for some steps: what a learning rate's schedule is made for."""
    train = config.train
    return (train.num_steps - steps_without) * train.updates_per_step * train.minibatches_per_step


def _prompt_stream(prepared: Prepared, state: checkpoint.RunState, say: Callable[[str], None]) -> PromptStream:
    prompts, order = prepared.train_prompts, prepared.train_order
    stream = PromptStream(prompts, order, cursor=state.prompt_cursor, pending=state.prompts_pending)
    if state.prompts_digest and state.prompts_digest != stream.digest:
        say("the training prompts are others than at the checkpoint: some may come again before all have come once")
    return stream


def _fetched_estimates(ref: Any) -> Any:
    return fetch(ref, who="the object store", what="reading value estimates")


def build_sampler(calls: Calls, config: Config, rollout: RolloutPool, scoring: RewardPool) -> Sampler:
    """What both training and evaluation sample and score through."""
    return Sampler(
        calls,
        rollout,
        scoring,
        linger_s=config.rollout.linger_s,
        whole_groups=wants_whole_groups(config),
        deadline_s=config.rollout.deadline_s,
    )


def build_broadcaster(
    calls: Calls, config: Config, learner: LearnerGroup, rollout: RolloutPool
) -> WeightBroadcaster | AdapterBroadcaster:
    """What brings every new version to the engines."""
    if config.learner.lora.syncs_adapter_only:
        return AdapterBroadcaster(learner, rollout, calls.gather, config.weights)
    return WeightBroadcaster(learner, rollout, calls.gather, config.weights, weight_backend(config))


def build_probe(calls: Calls, prepared: Prepared, learner: LearnerGroup, rollout: RolloutPool) -> Probe:
    """What compares engines with the learner when the trained tokens are of earlier versions."""
    config = prepared.config
    return Probe(
        calls,
        learner,
        rollout,
        probe_text([prompt.token_ids for prompt in prepared.train_prompts], prepared.max_tokens),
        bound=bound_of(config.weights, config.learner.dtype, config.rollout.dtype or config.learner.dtype),
        deadline_s=config.rollout.deadline_s,
    )


def build_pipeline(
    config: Config,
    policy_version: int,
    calls: Calls,
    sampler: Sampler,
    reference: ReferencePool | None,
    prompts: PromptStream,
) -> Pipeline:
    """What feeds the loop from `policy_version` on."""
    train, rule, rollout = config.train, config.algorithm.groups, config.rollout
    oversample = rule.oversample if rule.zero_variance == "resample" else 1.0
    tries = rule.max_tries if rule.zero_variance == "resample" else 1
    ledger = Ledger(
        train.prompts_per_step,
        train.max_staleness,
        policy_version=policy_version,
        num_steps=train.num_steps,
        max_rejects_per_step=(tries - 1) * math.ceil(train.prompts_per_step * oversample),
        oversample=oversample,
    )
    cap = rollout.max_in_flight or 2 * rollout.max_num_seqs
    plan = sampling_plan(config)
    num_samples = sum(sampling.samples_per_prompt for sampling in plan)
    scheduler = Scheduler(ledger, [cap] * rollout.num_workers, num_samples)
    return Pipeline(calls, sampler, reference, scheduler, prompts, plan, config)


def sampling_plan(config: Config) -> list[Sampling]:
    """How each prompt is sampled: for training, and once greedily where the advantage estimator asks for a baseline."""
    training = Sampling(
        temperature=config.rollout.temperature,
        max_response_tokens=config.rollout.max_response_tokens,
        samples_per_prompt=config.train.samples_per_prompt,
        ignore_eos=config.rollout.ignore_eos,
    )
    greedy = replace(training, temperature=0.0, samples_per_prompt=1)
    return [training, greedy] if needs_greedy(config) else [training]


def start_coefficients(config: Config, state: checkpoint.RunState) -> Coefficients:
    """As configured, or where an adaptive one stood at the checkpoint."""
    start = initial(config.algorithm)
    kl, entropy = config.algorithm.kl, config.algorithm.entropy
    if kl.target is not None and state.kl_coef is not None:
        start = replace(start, kl=state.kl_coef)
    if entropy.target is not None and state.entropy_coef is not None:
        start = replace(start, entropy=state.entropy_coef, entropy_level=state.entropy_level)
    return start


def _newest(config: Config, run_dir: Path, display: Display) -> tuple[checkpoint.RunState, Path | None]:
    """Where the run stands, and the checkpoint to continue from; None for a run that starts."""
    found = checkpoint.checkpoints(run_dir) if config.resume == "auto" else []
    if not found:
        earlier = set_aside(run_dir)
        if earlier is not None:
            display.say(f"no checkpoint to resume from: starting over; what was there is kept in {earlier}")
        return checkpoint.RunState(step=0, prompt_cursor=0), None
    state = checkpoint.load_state(found[-1])
    display.say(f"resuming from {found[-1]} after step {state.step}")
    return state, found[-1]


def _restore(folder: Path, learner: LearnerGroup, critic: CriticGroup | None, reference: ReferencePool | None) -> None:
    learner.load(str(folder))
    if critic is not None:
        critic.load(str(folder))
    if reference is not None and (folder / REFERENCE_FILE).exists():  # otherwise it has never been refreshed
        reference.load(str(folder))
