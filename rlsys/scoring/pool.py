"""The pool of reward workers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from rlsys.runtime.calls import fetch
from rlsys.runtime.chunks import chunks_of
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.scoring.worker import RewardWorker, ScoringSetup
from rlsys.types import Prompt, TextRef, TrajectoryRef

HELD_CHUNKS = 16
"""A group's responses are mostly in one chunk or in few, which hold those of its neighbours too."""


class RewardPool:
    """Interchangeable workers, by index."""

    def __init__(self, cluster: Cluster, setup: ScoringSetup, demands: list[Demand]) -> None:
        self._calls = cluster.calls
        self._texts = lru_cache(HELD_CHUNKS)(partial(fetch, who="the object store", what="reading responses"))
        self.names = [demand.name for demand in demands]
        self.deadline_s = setup.scoring.deadline_s
        self._workers = [cluster.start(RewardWorker, demand, setup) for demand in demands]

    def start(self, deadline_s: float) -> None:
        """Wait until every worker has loaded its functions."""
        calls = {name: worker.start.remote() for name, worker in zip(self.names, self._workers, strict=True)}
        self._calls.gather(calls, what="starting the reward workers", deadline_s=deadline_s)

    def begin_take_spans(self) -> dict[str, Any]:
        """References to what each worker did since the last call."""
        return {name: worker.take_spans.remote() for name, worker in zip(self.names, self._workers, strict=True)}

    def begin_score(self, worker: int, items: Sequence[tuple[Prompt, TrajectoryRef]], step: int) -> tuple[Any, Any]:
        """References to the trajectories' rewards, in order, with the means of what functions logged; and to the chunk
        of their responses' texts, in the same order."""
        chunks, places = chunks_of([[trajectory for _, trajectory in items]])
        score = self._workers[worker].score.options(num_returns=2)
        scored, texts = score.remote([prompt for prompt, _ in items], step, places[0], *chunks)
        return scored, texts

    def text(self, ref: TextRef | None) -> str:
        """A response's text, on the driver: for writing it down. Few chunks are held at a time."""
        return "" if ref is None else self._texts(ref.chunk)[ref.index]
