"""The orchestrator's parts as the configuration asks for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from rlsys.algorithms import advantages
from rlsys.algorithms.requirements import needs_greedy
from rlsys.config.schema import Config
from rlsys.data.stream import PromptStream
from rlsys.orchestrator.admission import Admission
from rlsys.orchestrator.orchestrator import NEW_RUN, GroupRule, Orchestrator, ReferenceQueue, Resumed
from rlsys.orchestrator.router import Router
from rlsys.orchestrator.sampling import Engine, GroupSampler, Scoring
from rlsys.orchestrator.scaling import EngineScaler, LeavingEngines
from rlsys.orchestrator.supervisor import Engines, EngineSupervisor
from rlsys.rewards.entry import wants_whole_groups
from rlsys.runtime.calls import Calls
from rlsys.runtime.cluster import Cluster
from rlsys.types import Sampling


class EnginePool(Protocol):
    """The pool of engines."""

    @property
    def engines(self) -> Mapping[int, Engine]:
        """The engines by number; another takes the place of one that was lost."""

    def lose(self, engine: int, why: str) -> None:
        """Take an engine that is gone out of service."""


def admission_of(config: Config, policy_version: int, ready: Sequence[int] = ()) -> Admission:
    """Return the bound on groups in flight, from `policy_version` on; `ready` as `Admission` takes it."""
    train, rule = config.train, config.algorithm.groups
    is_resampling = rule.zero_variance == "resample"
    oversample = rule.oversample if is_resampling else 1.0
    # One try: a rejected group (zero_variance=drop, on_error=drop_group) is not replaced, and its slot stays empty.
    tries = rule.max_tries if is_resampling else 1
    return Admission(
        train.prompts_per_step,
        train.max_staleness,
        policy_version=policy_version,
        num_steps=train.num_steps,
        # The first prompt of each slot is one of the tries, so `tries - 1` more may be drawn for it.
        max_extra_per_step=(tries - 1) * train.prompts_per_step,
        oversample=oversample,
        ready=ready,
    )


def group_rule_of(config: Config) -> GroupRule:
    """Return which groups are trained."""
    estimator = str(config.algorithm.advantage["name"])
    return GroupRule(
        prompts_per_step=config.train.prompts_per_step,
        keeps_equal_rewards=config.algorithm.groups.zero_variance == "keep",
        compares_parts=bool(advantages.registry.fact(estimator, "by_parts", default=False)),
        on_error=config.scoring.on_error,
        dropping_ends=frozenset(end for end, policy in config.episodes.on_end.items() if policy == "drop_group"),
    )


def sampler_of(config: Config, engines: EnginePool, scoring: Scoring) -> GroupSampler:
    """Return the sampler that training and evaluation share."""
    return GroupSampler(
        engines.engines,
        scoring,
        Router([config.rollout.cap] * len(engines.engines)),
        lose=engines.lose,
        whole_groups=wants_whole_groups(config),
        deadline_s=config.rollout_deadline_s,
    )


def supervisor_of(
    config: Config,
    engines: Engines,
    router: Router,
    cluster: Cluster,
    give_weights: Callable[[int], Awaitable[None]],
) -> EngineSupervisor:
    """Return what replaces lost engines; `give_weights` brings them the current policy."""
    return EngineSupervisor(
        engines,
        router,
        cluster.calls.background,
        give_weights,
        cluster.restarts,
        startup_deadline_s=config.cluster.startup_deadline_s,
    )


def scaler_of(
    config: Config,
    engines: LeavingEngines,
    router: Router,
    supervisor: EngineSupervisor,
    take_leave: Callable[[int], Awaitable[None]],
) -> EngineScaler:
    """Return what changes the number of engines; `take_leave` takes one out of broadcasts."""
    return EngineScaler(engines, router, supervisor, take_leave, drain_deadline_s=config.rollout_deadline_s)


def orchestrator_of(
    config: Config,
    policy_version: int,
    calls: Calls,
    sampler: GroupSampler,
    reference: ReferenceQueue | None,
    prompts: PromptStream,
    resumed: Resumed = NEW_RUN,
) -> Orchestrator:
    """Return the orchestrator that feeds the loop from `policy_version` on, perhaps where a checkpoint left off."""
    return Orchestrator(
        calls.background,
        sampler,
        admission_of(config, policy_version, resumed.versions),
        prompts,
        sampling_params_of(config),
        group_rule_of(config),
        reference,
        deadline_s=config.rollout_deadline_s,
        resumed=resumed,
        idle_shares=calls.occupancy.take,
    )


def sampling_params_of(config: Config) -> list[Sampling]:
    """Return how each prompt is sampled: for training, and once greedily where the estimator asks for a baseline."""
    training = Sampling(
        temperature=config.rollout.temperature,
        max_response_tokens=config.rollout.max_response_tokens,
        samples_per_prompt=config.train.samples_per_prompt,
        ignore_eos=config.rollout.ignore_eos,
    )
    greedy = replace(training, temperature=0.0, samples_per_prompt=1)
    return [training, greedy] if needs_greedy(config) else [training]
