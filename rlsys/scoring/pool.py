"""The pool of scoring workers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlsys.runtime.batching import BatchingQueue
from rlsys.runtime.chunks import chunks_of
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.crew import Crew
from rlsys.runtime.room import Demand
from rlsys.scoring.worker import ScoringSetup, ScoringWorker
from rlsys.types import ScoringUnit, TextRef, UnitScores

# Chunks of texts that the driver keeps. A chunk holds the texts of one scoring call, often those of several groups, and
# groups are written in order: most reads find their chunk here.
MAX_HELD_CHUNKS = 16


class ScoringPool:
    """Equal workers behind one queue: an idle worker takes what waits in `queue`."""

    def __init__(self, cluster: Cluster, setup: ScoringSetup, demands: list[Demand]) -> None:
        self._calls = cluster.calls
        self._texts: OrderedDict[Any, Sequence[str]] = OrderedDict()
        self._deadline_s = setup.scoring.deadline_s
        self._whole_groups = setup.whole_groups
        self._crew = Crew(cluster, ScoringWorker, demands, setup)
        self.queue: BatchingQueue[ScoringUnit, UnitScores] = BatchingQueue(
            len(demands), self._score, cluster.calls.background, weight=len, replace=self._crew.replace
        )

    async def start(self, deadline_s: float) -> None:
        """Wait until every worker has loaded its functions."""
        await self._crew.start(deadline_s)

    def begin_take_spans(self) -> dict[str, Any]:
        """Fetch what each worker did since the last call."""
        return {name: worker.take_spans.remote() for name, worker in self._crew.named.items()}

    async def move(self, worker: int) -> None:
        """Let a new process, in the room that a worker has now, take its place."""
        await self._crew.move(worker)

    async def text(self, ref: TextRef | None) -> str:
        """Fetch a response's text to the driver: for writing it to a file."""
        if ref is None:
            return ""
        if ref.chunk not in self._texts:
            self._texts[ref.chunk] = await self._calls.read(ref.chunk, who="the object store", what="reading responses")
            while len(self._texts) > MAX_HELD_CHUNKS:
                self._texts.popitem(last=False)
        return self._texts[ref.chunk][ref.index]

    async def _score(self, worker: int, units: list[ScoringUnit]) -> list[UnitScores]:
        """Score units on one worker, in one call unless some must be kept apart."""
        scored: dict[int, UnitScores] = {}
        for part in calls_apart(units, whole_groups=self._whole_groups):
            scored |= zip(part, await self._call(worker, [units[index] for index in part]), strict=True)
        return [scored[index] for index in range(len(units))]

    async def _call(self, worker: int, units: list[ScoringUnit]) -> list[UnitScores]:
        samples = [(unit.prompt, sample) for unit in units for sample in unit.samples]
        chunks, indices = chunks_of([[sample.trajectory for _, sample in samples]])
        score = self._crew.workers[worker].score.options(num_returns=2)
        scored, texts = score.remote([prompt for prompt, _ in samples], units[0].step, indices[0], *chunks)
        rewards, logged = await self._calls.result(
            scored, who=self._crew.name(worker), what="scoring", deadline_s=self._deadline_s
        )
        rewards = [replace(reward, response=TextRef(texts, index)) for index, reward in enumerate(rewards)]
        # Every unit gets the whole call's `logged`: means of what functions logged are not tied to rows.
        results, start = [], 0
        for unit in units:
            results.append((rewards[start : start + len(unit)], logged))
            start += len(unit)
        return results


def calls_apart(units: Sequence[ScoringUnit], *, whole_groups: bool) -> list[list[int]]:
    """Divide units into calls, given by the units' indices: each has one step, which functions see.

    With `whole_groups` no prompt occurs twice in a call. Functions that compare a prompt's responses recognise them by
    the prompt; the groups of a data set of one row would be one group to them.
    """
    calls: list[list[int]] = []
    seen: set[str] = set()  # prompts of the last call
    for index in sorted(range(len(units)), key=lambda index: units[index].step):
        step, text = units[index].step, str(units[index].prompt.text)
        if not calls or units[calls[-1][0]].step != step or (whole_groups and text in seen):
            calls.append([])
            seen = set()
        calls[-1].append(index)
        seen.add(text)
    return calls
