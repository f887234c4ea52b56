"""The pool of reference workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlsys.config.algorithm_schema import RefreshConfig
from rlsys.errors import DeadlineError, RlsysError, WorkerDiedError
from rlsys.reference.worker import ReferenceSetup, ReferenceWorker
from rlsys.run_folder.layout import REFERENCE
from rlsys.runtime.batching import BatchingQueue
from rlsys.runtime.chunks import chunks_of
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.crew import Crew
from rlsys.runtime.room import Demand
from rlsys.types import ReferenceScores, RolloutGroup

NEW = "the new reference worker"


def num_tokens(group: RolloutGroup) -> int:
    """Return the number of tokens of a group's trajectories: what it costs to score."""
    return sum(summary.num_tokens for summary in group.summaries)


class ReferencePool:
    """Interchangeable workers that hold a frozen policy; groups put into `queue` are shared out, balanced by tokens."""

    def __init__(
        self,
        cluster: Cluster,
        setup: ReferenceSetup,
        refresh: RefreshConfig,
        read_policy: Callable[[int], tuple[Mapping[str, Any], Any]],
        demands: list[Demand],
    ) -> None:
        """Start a process for each demand.

        Args:
            cluster: the cluster that the workers run on.
            setup: configuration that every worker is started with.
            refresh: options that say when the reference moves towards the policy, and how far.
            read_policy: starts reading a part of the policy, numbered from 0. It returns each rank's open call, whose
                result is whether the part is the last, and a reference to the part's parameters.
            demands: one demand per worker.
        """
        self._calls = cluster.calls
        self._config = setup.reference
        self._refresh = refresh
        self._read_policy = read_policy
        self._crew = Crew(cluster, ReferenceWorker, demands, setup)
        self._changing = asyncio.Lock()  # held while weights change, or are copied to a worker that is new
        self._is_initial = True  # until a refresh, or a checkpoint of one
        self._refreshed = 0  # the step of this process's last refresh
        self.queue: BatchingQueue[RolloutGroup, ReferenceScores] = BatchingQueue(
            len(demands), self._score, cluster.calls.background, weight=num_tokens, replace=self._replace
        )

    async def start(self, deadline_s: float) -> None:
        """Wait until every worker has its model."""
        await self._crew.start(deadline_s)

    async def refresh(self, step: int) -> None:
        """Set `ref = alpha * policy + (1 - alpha) * ref` every `refresh.every` steps (TR-DPO, arXiv:2404.09656).

        `step` is the step that was just trained.
        """
        if not self._is_due(step):
            return
        async with self._changing:
            workers, is_last, number = dict(self._crew.workers), False, 0
            while not is_last:
                ranks, weights = self._read_policy(number)
                # Ray passes the part on; the driver never holds it.
                staged = self._on_each(workers, "stage", weights)
                answers, _ = await asyncio.gather(self._call(ranks), staged)
                is_last, number = answers[next(iter(ranks))], number + 1
            await self._on_each(workers, "blend", self._refresh.alpha)
            self._is_initial = False
            self._refreshed = step

    def is_whole(self, step: int) -> bool:
        """Return whether the reference is as it should be after `step`, which this process has trained."""
        is_there = self._is_initial or bool(self._crew.workers)
        return is_there and (self._refreshed == step or not self._is_due(step))

    def _is_due(self, step: int) -> bool:
        return self._refresh.every > 0 and step % self._refresh.every == 0

    async def _on_each(self, workers: dict[int, Any], method: str, *args: Any) -> None:
        """Call a method on every worker; take those that are lost out of `workers`, and have them replaced."""
        calls = {number: getattr(worker, method).remote(*args) for number, worker in workers.items()}
        waits = [self._call({self._crew.name(number): call}) for number, call in calls.items()]
        failures = await asyncio.gather(*waits, return_exceptions=True)
        for number, failure in zip(calls, failures, strict=True):
            if isinstance(failure, WorkerDiedError | DeadlineError):
                del workers[number]
                if not workers:
                    raise failure
                self.queue.report(number, failure)
            elif isinstance(failure, BaseException):
                raise failure

    async def _call(self, calls: Mapping[str, Any]) -> dict[str, Any]:
        return await self._calls.gather(calls, what="the reference", deadline_s=self._config.deadline_s)

    async def save(self, folder: str) -> None:
        """Write the reference's weights, from the first worker that can, unless they are those of `model.path`."""
        if self._is_initial:
            return
        async with self._changing:
            for number, worker in [*self._crew.workers.items()]:
                try:
                    await self._call({self._crew.name(number): worker.save.remote(folder)})
                    return
                except (WorkerDiedError, DeadlineError) as error:
                    failure = error
                    self.queue.report(number, error)
        raise failure

    async def load(self, folder: str) -> None:
        """Restore what `save` wrote, on every worker; a checkpoint without it is of a reference never refreshed."""
        if not (Path(folder) / REFERENCE).exists():
            return
        calls = {name: worker.load.remote(folder) for name, worker in self._crew.named.items()}
        await self._calls.gather(calls, what=f"loading the reference of {folder}", deadline_s=self._config.deadline_s)
        self._is_initial = False

    async def _replace(self, worker: int, error: RlsysError) -> bool:
        """Replace a worker that was lost; a new one gets the weights of another."""
        async with self._changing:  # a refresh waits, which would miss the new one
            return await self._crew.replace(worker, error, self._copy_weights)

    async def move(self, worker: int) -> None:
        """Let a new process, in the room that a worker has now, take its place, with the weights that it has."""
        async with self._changing:
            await self._crew.move(worker, self._copy_weights)

    async def _copy_weights(self, to: Any) -> None:
        if self._is_initial:
            return
        if not self._crew.workers:
            raise WorkerDiedError(
                "the reference's last worker is gone, and with it the weights of its refreshes: a checkpoint has some"
            )
        name, source = next(iter(self._crew.named.items()))
        is_last, number = False, 0
        while not is_last:
            answer, part = source.read.options(num_returns=2).remote(number)
            found = await self._call({name: answer, NEW: to.stage.remote(part)})
            is_last, number = found[name], number + 1
        await self._call({NEW: to.blend.remote(1.0)})

    def begin_placement(self) -> dict[str, Any]:
        """Ask each worker how its model lies, and where."""
        return {name: worker.placement.remote() for name, worker in self._crew.named.items()}

    def begin_take_spans(self) -> dict[str, Any]:
        """Fetch what each worker did since the last call."""
        return {name: worker.take_spans.remote() for name, worker in self._crew.named.items()}

    async def _score(self, worker: int, groups: list[RolloutGroup]) -> list[ReferenceScores]:
        """Score whole groups on one worker, in one call."""
        chunks, indices = chunks_of(group.trajectories for group in groups)
        name = self._crew.name(worker)
        call = self._crew.workers[worker].logprobs.options(num_returns=1 + len(groups))
        answer, *logprobs = call.remote(indices, *chunks)
        sums = await self._calls.result(
            answer, who=name, what="reference log-probabilities", deadline_s=self._config.deadline_s
        )
        return [ReferenceScores(ref, sums[index] if sums else []) for index, ref in enumerate(logprobs)]
