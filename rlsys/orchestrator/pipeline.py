"""The training side of sampling: what the scheduler admits becomes scored groups, and groups become a step's batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rlsys.algorithms import advantages
from rlsys.config.schema import Config
from rlsys.data.stream import PromptStream
from rlsys.errors import RlsysError
from rlsys.metrics.step import Metrics, StageClock
from rlsys.orchestrator.admission import Taken
from rlsys.orchestrator.group import PendingGroup
from rlsys.orchestrator.sampler import Sampler
from rlsys.orchestrator.scheduler import Scheduler
from rlsys.orchestrator.step_batch import Collected, has_variance
from rlsys.orchestrator.worker_queue import Stage
from rlsys.reference.pool import ReferencePool
from rlsys.runtime.calls import Calls
from rlsys.scoring.combine import first_failure
from rlsys.types import FAILURES, Reward, Sampling


class Pipeline:
    """Samples up to `train.max_staleness` steps ahead; with 0 it is synchronous.

    It works whenever the driver waits for anything, be it a batch, the learner or a broadcast.
    """

    def __init__(
        self,
        calls: Calls,
        sampler: Sampler,
        reference: ReferencePool | None,
        scheduler: Scheduler,
        prompts: PromptStream,
        plan: Sequence[Sampling],
        config: Config,
    ) -> None:
        self._calls = calls
        self._sampler = sampler
        self._scheduler = scheduler
        self._prompts = prompts
        self._plan = plan
        self._train = config.train
        self._keeps_all = config.algorithm.groups.zero_variance == "keep"
        self._on_error = config.scoring.on_error
        self._by_parts = bool(
            advantages.registry.fact(str(config.algorithm.advantage["name"]), "by_parts", default=False)
        )
        self._open: dict[int, PendingGroup] = {}  # admitted, neither taken nor rejected
        self._rejected: list[PendingGroup] = []  # since the last batch
        self._num_drawn = 0  # since the last batch
        self._taken: list[Taken] | None = None
        self._references: Stage[PendingGroup] | None = None
        if reference is not None:
            self._references = Stage(
                calls,
                reference.names,
                lambda worker, groups: reference.begin_logprobs(worker, [group.rollout() for group in groups]),
                self._on_reference,
                weight=lambda group: sum(summary.num_tokens for summary, _ in group.found.values()),
                what="reference log-probabilities",
                deadline_s=reference.deadline_s,
            )

    def collect(self, policy_version: int, clock: StageClock) -> Collected:
        """The groups that the step of `policy_version` trains; waits until they are sampled and scored."""
        if policy_version != self._scheduler.policy_version:
            self._scheduler.advance(policy_version)
        self._sampler.step = policy_version + 1
        self._admit()
        self._taken = None
        self._since, self._was = time.perf_counter(), "rollout"
        self._sampler.wait(lambda: self._is_ready(clock), "rollout")
        assert self._taken is not None
        kept = [self._open.pop(taken.group_id) for taken in self._taken]
        rejected, self._rejected = self._rejected, []
        collected = self._record(kept, rejected)
        self._num_drawn = 0
        return collected

    def metrics(self) -> Metrics:
        """Depths of queues now, counts of groups so far, and how idle each role was since the last call."""
        scheduled = self._scheduler.metrics()
        waiting: Metrics = {"schedule/unscored_trajectories": float(self._sampler.scoring.num_waiting)}
        if self._references is not None:
            waiting["schedule/unreferenced_groups"] = float(self._references.num_waiting)
        return {**scheduled, **waiting, **self._calls.occupancy.take()}

    @property
    def pending_places(self) -> list[int]:
        """Prompts that were drawn and not trained yet, by their place in the stream: a checkpoint holds them."""
        return sorted([*self._prompts.pending, *(group.place for group in self._open.values())])

    def on_sampled(self, group: PendingGroup, sample: int) -> None:
        """Its engine has room again."""
        self._scheduler.on_sampled(group.group_id, group.attempt, sample)
        self._admit()

    def on_failed(self, group: PendingGroup, sample: int, error: str) -> None:
        """The group is sampled again. Raises WorkerError after the last attempt."""
        self._scheduler.on_failed(group.group_id, group.attempt, error, sample)
        self._sampler.drop(group)
        self._admit()

    def on_scored(self, group: PendingGroup) -> None:
        """Rejected where its rewards teach nothing, or failed and that is not accepted; else on to the reference."""
        if self._is_rejected(group.rewards_of_first(), group.prompt.index):
            self._rejected.append(self._open.pop(group.group_id))
            self._scheduler.on_scored(group.group_id, group.attempt, keep=False)
            self._admit()
        elif self._references is not None:
            self._references.put([group])
        else:
            self._scheduler.on_scored(group.group_id, group.attempt, keep=True)

    def _is_rejected(self, rewards: Sequence[Reward], prompt_index: int) -> bool:
        """Raises RlsysError for a reward that failed, where that ends the run."""
        if self._on_error != "mask" and any(reward.outcome in FAILURES for reward in rewards):
            if self._on_error == "raise":
                raise RlsysError(
                    f"prompt {prompt_index}: {first_failure([rewards], FAILURES)} (scoring.on_error=raise; mask leaves "
                    "the trajectory out, drop_group its whole group)"
                )
            return True
        return not self._keeps_all and not has_variance(rewards, self._by_parts)

    def _admit(self) -> None:
        by_engine: dict[int, list[PendingGroup]] = {}
        for admission in self._scheduler.admissions():
            group = self._open.get(admission.group_id)
            if group is None:
                place, prompt = self._prompts.take()
                group = PendingGroup(admission.group_id, prompt, self._plan, self, place)
                self._open[group.group_id] = group
                self._num_drawn += 1
            else:
                group.start_again(admission.attempt)
            by_engine.setdefault(admission.engine, []).append(group)
        for engine, groups in by_engine.items():
            self._sampler.start(engine, groups, self._scheduler.policy_version)

    def _on_reference(self, groups: list[PendingGroup], sums: list[list[float]], refs: list[Any]) -> None:
        for index, (group, ref) in enumerate(zip(groups, refs, strict=True)):
            group.ref_logprobs, group.kl_sums = ref, sums[index] if sums else []
            self._scheduler.on_scored(group.group_id, group.attempt, keep=True)

    def _is_ready(self, clock: StageClock) -> bool:
        """Take the batch if it is there; the time since the last look goes to what it was spent on."""
        now = time.perf_counter()
        clock.add(self._was, now - self._since)
        self._since, self._was = now, self._phase()
        self._taken = self._scheduler.take()
        return self._taken is not None

    def _phase(self) -> str:
        if self._sampler.num_running:
            return "rollout"
        return "reference" if self._sampler.scoring.is_idle and self._references is not None else "reward"

    def _record(self, kept: Sequence[PendingGroup], rejected: Sequence[PendingGroup]) -> Collected:
        every = sorted([*kept, *rejected], key=lambda group: group.group_id)
        trained = {group.group_id for group in kept}
        greedy = None
        if len(self._plan) > 1:
            first = self._plan[0].samples_per_prompt
            greedy = [group.rewards[first].total for group in every]
        return Collected(
            groups=[group.rollout() for group in every],
            rewards=[group.rewards_of_first() for group in every],
            greedy_rewards=greedy,
            logged=self._sampler.take_logged(),
            kept=[index for index, group in enumerate(every) if group.group_id in trained],
            tries=self._num_drawn / self._train.prompts_per_step,
            by_parts=self._by_parts,
            ref_logprobs=[group.ref_logprobs for group in every] if self._references is not None else None,
            kl_sums=[group.kl_sums for group in every] if self._references is not None else None,
        )
