"""The orchestrator: from prompts to the batch of each step, up to `max_staleness` steps ahead of training.

Every group is one coroutine, `_run_group`: admitted, sampled, scored, rejected or referenced, ready. The admission loop
starts one whenever the staleness bound and an engine have room. Groups complete in any order, also while the training
loop waits for a batch, the learner or a broadcast.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rlsys.data.stream import PromptStream
from rlsys.errors import DeadlineError, RlsysError
from rlsys.metrics.step import Metrics
from rlsys.orchestrator.admission import Admission
from rlsys.orchestrator.batch import StepBatch, has_variance
from rlsys.orchestrator.router import NEW, Lease
from rlsys.orchestrator.sampling import GroupSampler
from rlsys.runtime.background import Background, cancel
from rlsys.scoring.combine import first_failure
from rlsys.types import FAILURES, Prompt, ReferenceScores, RolloutGroup, Sampling, ScoredGroup


class ReferenceQueue(Protocol):
    """The queue in front of the reference policy."""

    def put(self, item: RolloutGroup) -> asyncio.Future[ReferenceScores]:
        """Compute a group's reference log-probabilities."""

    @property
    def num_waiting(self) -> int:
        """Number of groups that wait for a worker."""


@dataclass(frozen=True)
class GroupRule:
    """The decision which groups are trained."""

    prompts_per_step: int  # for the metric groups/tries
    keeps_equal_rewards: bool  # a group whose rewards are all equal is trained like any other
    compares_parts: bool  # rewards count as equal when every reward function's are
    on_error: str  # mask | drop_group | raise: what becomes of a group with a reward that failed
    dropping_ends: frozenset[str] = frozenset()  # ends of an episode with which its group is left out

    def rejects(self, group: ScoredGroup) -> bool:
        """Return whether the group is left out. Raises RlsysError for a failed reward where that ends the run."""
        if self.on_error != "mask" and any(reward.outcome in FAILURES for reward in group.rewards):
            if self.on_error == "raise":
                raise RlsysError(
                    f"prompt {group.rollout.prompt.index}: {first_failure([group.rewards], FAILURES)} "
                    "(scoring.on_error=raise; mask leaves the trajectory out, drop_group its whole group)"
                )
            return True
        if any(summary.end in self.dropping_ends for summary in group.rollout.summaries):
            return True
        return not self.keeps_equal_rewards and not has_variance(group.rewards, self.compares_parts)


@dataclass(frozen=True)
class Resumed:
    """What a checkpoint knows of the prompts that were issued before it; empty for a new run."""

    finished: Sequence[tuple[int, ScoredGroup]] = ()  # numbered from 0, with the positions of their prompts
    versions: Sequence[int] = ()  # that they started under, in rising order
    ledger: Mapping[str, int] = field(default_factory=dict)  # see `Orchestrator.ledger`


NEW_RUN = Resumed()


class Orchestrator:
    """The owner of the groups in flight, from admission to the batch that trains them."""

    def __init__(
        self,
        background: Background,
        sampler: GroupSampler,
        admission: Admission,
        prompts: PromptStream,
        sampling_params: Sequence[Sampling],
        rule: GroupRule,
        reference: ReferenceQueue | None,
        *,
        deadline_s: float,
        resumed: Resumed = NEW_RUN,
        idle_shares: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """Start with nothing in flight; the first `next_batch` starts sampling.

        Args:
            background: Runs the groups' coroutines.
            sampler: Samples and scores groups.
            admission: Bounds the number of groups in flight.
            prompts: The training prompts, in order.
            sampling_params: The sampling of each prompt; a second entry is the greedy response for a baseline.
            rule: Decides which groups are trained.
            reference: Computes reference log-probabilities of accepted groups; None without a reference.
            deadline_s: Longest wait without a response that is finished or scored.
            resumed: Where a checkpoint left off; `admission` counts its groups as ready.
            idle_shares: Returns the fraction of time in which each role was idle since the last call.
        """
        self._background = background
        self._sampler = sampler
        self._admission = admission
        self._prompts = prompts
        self._sampling_params = sampling_params
        self._num_samples = sum(sampling.samples_per_prompt for sampling in sampling_params)
        self._rule = rule
        self._reference = reference
        self._deadline_s = deadline_s
        self._idle_shares = idle_shares
        self._changed = asyncio.Event()  # set whenever the admission may have a new answer to `take` or `capacity`
        # The stream position of each group's prompt, until a step takes it.
        self._positions = {group.group_id: position for position, group in resumed.finished}
        self._ready = {group.group_id: group for _, group in resumed.finished}
        # A step, and what it trains: groups with the positions of their prompts.
        self._last_batch: tuple[int, list[tuple[int, ScoredGroup]]] = (0, [])
        self._num_filtered, self._num_trained = (resumed.ledger.get(name, 0) for name in ("filtered", "trained"))
        self._rejected: list[tuple[int, ScoredGroup]] = []  # since the last batch, with their positions
        self._num_drawn = 0  # prompts, since the last batch
        self._num_ended = 0  # groups, accepted or rejected
        self._is_admitting = False

    async def next_batch(self, step: int) -> StepBatch:
        """Return the groups that `step` trains, once they are sampled, scored and referenced.

        The engines must already serve policy version `step - 1`, from which the step starts.

        Raises:
            DeadlineError: The groups were not ready in time; the message names the workers that were waited for.
        """
        version, started = step - 1, time.perf_counter()
        # The first batch of a run, or after a resume, starts from the version that admission was made with.
        if version != self._admission.policy_version:
            self._admission.advance(version)
        self._sampler.step = step
        self._changed.set()  # the new version has room for more groups
        if not self._is_admitting:
            # Not earlier: groups start only once the engines have the weights, and after the first evaluation.
            self._is_admitting = True
            self._background.start(self._admit_groups())
        taken = await self._taken_in_time()
        self._changed.set()  # the slots of this step may be filled again
        self._last_batch = step, [(self._positions.pop(group_id), self._ready[group_id]) for group_id in taken]
        self._num_trained += len(taken)
        return self._batch(version, taken, started)

    def finished(self, step: int) -> list[tuple[int, ScoredGroup]]:
        """Return groups that are finished and not trained by `step`, with the positions of their prompts.

        A run that ends early may have taken the next step's batch already.
        """
        batch_step, taken = self._last_batch
        ready = [(self._positions[group_id], group) for group_id, group in self._ready.items()]
        return sorted([*(taken if batch_step > step else []), *ready], key=lambda each: each[0])

    def pending_positions(self) -> list[int]:
        """Return stream positions of prompts that were drawn and whose groups are not finished: to be sampled again."""
        running = [position for group_id, position in self._positions.items() if group_id not in self._ready]
        return sorted([*self._prompts.pending, *running])

    def ledger(self, step: int) -> dict[str, int]:
        """Return what became of every prompt that was ever issued, as of `step`; `issued` is the sum of the others."""
        batch_step, taken = self._last_batch
        return {
            "issued": self._prompts.cursor,
            "in_flight": len(self.pending_positions()),
            "finished": len(self.finished(step)),
            "filtered": self._num_filtered,
            "trained": self._num_trained - (len(taken) if batch_step > step else 0),
        }

    def metrics(self) -> Metrics:
        """Return depths of the queues now, counts of groups so far, and how idle each role was since the last call."""
        sampler, admission, load = self._sampler, self._admission, self._sampler.router.load
        depths = {
            "running_groups": sampler.num_sampling,
            "waiting_groups": sampler.router.num_restarting,
            "scoring_groups": sampler.num_scoring,
            "scoring_backlog": sampler.scoring.num_waiting,
            "ready_groups": admission.num_ready,
            "running_trajectories": sum(load.values()),
            **{f"running_trajectories/engine_{engine}": count for engine, count in load.items()},
        }
        if self._reference is not None:
            depths["unreferenced_groups"] = self._reference.num_waiting
        counts = {
            "admitted": admission.num_admitted,
            "taken": admission.num_taken,
            "rejected": admission.num_rejected,
            "skipped": admission.num_skipped,
            "restarted": sampler.num_restarted,
            "engines": len(load),
            "engines_lost": sampler.router.num_lost,
        }
        scheduled: Metrics = {f"schedule/{name}": float(value) for name, value in (depths | counts).items()}
        return scheduled | self._idle_shares()

    async def _admit_groups(self) -> None:
        """Start a group whenever the staleness bound and an engine have room for it."""
        while True:
            while not self._admission.capacity():
                self._changed.clear()
                await self._changed.wait()
            # Admit only once an engine has room, so that the group starts under the newest policy version.
            # The capacity is still there after the wait, because only this loop uses it up. It waits for one group at a
            # time, so new groups need no order among themselves.
            lease = await self._sampler.router.reserve(self._num_samples, (NEW, 0))
            group_id = self._admission.admit()
            position, prompt = self._prompts.take()
            self._positions[group_id] = position
            self._num_drawn += 1
            self._background.start(self._run_group(group_id, position, prompt, lease))

    async def _run_group(self, group_id: int, position: int, prompt: Prompt, lease: Lease) -> None:
        """Carry one group from its prompt to the batch, or to its rejection."""

        def start() -> int:
            self._admission.restart(group_id)
            self._changed.set()  # a step that had to wait for this group may be complete without it
            return self._admission.policy_version

        group = await self._sampler.sample_group(
            # The position, not the group's id: ids begin at 0 in every process, and a resumed run would draw the random
            # numbers of the first steps again.
            prompt,
            self._sampling_params,
            group_id=group_id,
            stream=position,
            start=start,
            lease=lease,
        )
        if self._rule.rejects(group):
            # Its prompt counts as used: a resumed run does not draw it again.
            self._num_filtered += 1
            self._rejected.append((self._positions.pop(group_id), group))
            self._admission.reject(group_id)
        else:
            if self._reference is not None:  # after the rejection, so that rejected groups cost the reference nothing
                group = replace(group, reference=await self._reference.put(group.rollout))
            self._ready[group_id] = group
            self._admission.complete(group_id)
        self._num_ended += 1
        self._changed.set()

    async def _taken_in_time(self) -> list[int]:
        """Wait for the step's groups for as long as responses are finished or scored, however long that takes."""
        waiting = asyncio.ensure_future(self._taken())
        try:
            while not waiting.done():
                before = self._progress
                await asyncio.wait([waiting], timeout=self._deadline_s)
                if not waiting.done() and self._progress == before:
                    raise DeadlineError(self._sampler.timeout_message("rollout", self._deadline_s))
            return waiting.result()
        finally:
            await cancel([waiting])

    @property
    def _progress(self) -> tuple[int, int]:
        """Responses and scores, and groups with their reference log-probabilities, since the start."""
        return self._sampler.num_delivered, self._num_ended

    async def _taken(self) -> list[int]:
        """Wait for the step's groups and return their ids."""
        # Cleared before waiting and checked again after: what happens in between sets the event, so no wake-up is lost.
        # The admission loop waits for the same event; setting it wakes both.
        while (taken := self._admission.take()) is None:
            self._changed.clear()
            await self._changed.wait()
        return taken

    def _batch(self, version: int, taken: Sequence[int], started: float) -> StepBatch:
        for group_id in taken:
            del self._ready[group_id]
        _, trained = self._last_batch
        rejected, self._rejected = self._rejected, []
        num_drawn, self._num_drawn = self._num_drawn, 0
        # By position: a run that was resumed in the middle of a step numbers its groups in another order.
        groups = [group for _, group in sorted([*trained, *rejected], key=lambda each: each[0])]
        kept = set(taken)
        return StepBatch(
            policy_version=version,
            groups=tuple(groups),
            trained=tuple(index for index, group in enumerate(groups) if group.group_id in kept),
            num_drawn=num_drawn,
            prompts_per_step=self._rule.prompts_per_step,
            by_parts=self._rule.compares_parts,
            stage_s=self._stages(started, time.perf_counter()),
        )

    def _stages(self, started: float, ended: float) -> dict[str, float]:
        """Divide the wait for a batch by what it was for: responses, then rewards, then the reference."""
        sampler = self._sampler
        # Groups overlap, so stages are told apart by when the last response and the last reward arrived.
        if sampler.num_sampling:
            # Engines sample groups of later steps, so the last response says nothing about this step.
            return {"rollout": ended - started}
        sampled = min(max(sampler.last_sample_at, started), ended)
        scored = ended if self._reference is None else min(max(sampler.last_score_at, sampled), ended)
        stages = {"rollout": sampled - started, "scoring": scored - sampled}
        return stages if self._reference is None else stages | {"reference": ended - scored}
