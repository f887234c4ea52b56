"""Groups through engines and reward workers: each trajectory is scored as it finishes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rlsys.errors import WorkerError
from rlsys.orchestrator.group import PendingGroup
from rlsys.orchestrator.worker_queue import Stage
from rlsys.rollout.pool import RolloutPool
from rlsys.runtime.calls import Calls
from rlsys.scoring.pool import RewardPool
from rlsys.types import Finished, Prompt, Reward, RolloutGroup, Sampling, TextRef, TrajectoryRef

POLL_S = 30.0
"""An engine that has nothing to tell answers after this long all the same."""
POLL_DEADLINE_S = 300.0
Sample = tuple[PendingGroup, int, int, TrajectoryRef]
"""A group, its attempt at the time, which of its samples, and where that is."""


class Sampler:
    """Listens to every engine that has work, sends what has finished to the reward workers, and tells the owner.

    Token arrays stay in the object store: the driver sees summaries, rewards and references.
    """

    def __init__(
        self,
        calls: Calls,
        rollout: RolloutPool,
        scoring: RewardPool,
        *,
        linger_s: float,
        whole_groups: bool,
        deadline_s: float,
    ) -> None:
        self._calls = calls
        self._rollout = rollout
        self._linger_s = linger_s
        self._whole_groups = whole_groups
        self._deadline_s = deadline_s
        self._groups: dict[int, PendingGroup] = {}
        self._running: Counter[int] = Counter()  # samples by engine
        self._engine_of: dict[int, int] = {}
        self._listening: set[int] = set()
        self._own_ids = itertools.count(-1, -1)  # of groups that no scheduler knows
        self._logged: dict[str, list[float]] = {}
        self.step = 0  # that rewards are told
        self._pool = scoring
        self.scoring: Stage[list[Sample]] = Stage(
            calls,
            scoring.names,
            self._begin_score,
            self._scored,
            weight=len,
            what="scoring",
            deadline_s=scoring.deadline_s,
        )

    @property
    def num_running(self) -> int:
        """Trajectories that engines are asked for and have not handed over."""
        return sum(self._running.values())

    def start(self, engine: int, groups: Sequence[PendingGroup], policy_version: int) -> None:
        """Let an engine sample these groups; their owners hear the rest."""
        if not groups:
            return
        for group in groups:
            self._groups[group.group_id] = group
            self._engine_of[group.group_id] = engine
            self._add_running(engine, group.num_samples)
        requests = [request for group in groups for request in group.requests()]
        call = self._rollout.begin_submit(engine, requests, policy_version)
        self._watch(call, engine, "rollout", lambda _: None)
        self._listen(engine)

    def drop(self, group: PendingGroup) -> None:
        """Stop sampling a group whose attempt failed; what still comes of it is ignored."""
        engine = self._engine_of.pop(group.group_id)
        self._add_running(engine, len(group.found) - group.num_samples)
        del self._groups[group.group_id]
        self._watch(self._rollout.begin_cancel(engine, [group.group_id]), engine, "cancelling", lambda _: None)

    def complete(
        self, prompts: Sequence[Prompt], sampling: Sampling, policy_version: int
    ) -> tuple[list[RolloutGroup], list[list[Reward]]]:
        """Sample and score prompts outside training, and wait for all of them; in order."""
        owner = _Caller()
        groups = [PendingGroup(next(self._own_ids), prompt, [sampling], owner) for prompt in prompts]
        size = self._rollout.num_workers
        for engine in range(size):
            self.start(engine, groups[engine::size], policy_version)
        while owner.num_scored < len(groups):  # the deadline is for one group, however many there are
            self.wait(partial(owner.is_past, owner.num_scored), "rollout")
        return [group.rollout() for group in groups], [group.rewards_of_first() for group in groups]

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Serve until `ready()`. Raises DeadlineError that says who is late."""
        self._calls.until(ready, deadline_s=self._deadline_s, late=lambda: self._late(what))

    def text(self, ref: TextRef | None) -> str:
        """A response's text, on the driver."""
        return self._pool.text(ref)

    def take_logged(self) -> dict[str, float]:
        """Means of what reward functions noted since the last call."""
        logged, self._logged = self._logged, {}
        return {name: sum(values) / len(values) for name, values in logged.items()}

    def _add_running(self, engine: int, count: int) -> None:
        before = self._running[engine]
        self._running[engine] += count
        if bool(before) != bool(self._running[engine]):
            occupancy, name = self._calls.occupancy, self._rollout.names[engine]
            (occupancy.end if before else occupancy.begin)(name)

    def _listen(self, engine: int) -> None:
        if engine in self._listening or not self._running[engine]:
            return
        self._listening.add(engine)
        told, chunk = self._rollout.begin_finished(engine, POLL_S, self._linger_s)
        self._watch(told, engine, "rollout", partial(self._told, engine, chunk))

    def _watch(self, call: Any, engine: int, what: str, done: Callable[[Any], None]) -> None:
        self._calls.start(
            call, who=self._rollout.names[engine], what=what, deadline_s=POLL_DEADLINE_S, done=done, is_work=False
        )

    def _told(self, engine: int, chunk: Any, news: Sequence[Finished]) -> None:
        self._listening.discard(engine)
        ready: list[list[Sample]] = []
        for index, finished in enumerate(news):
            group = self._groups.get(finished.group_id)
            if group is None or finished.attempt != group.attempt or finished.sample in group.found:
                continue  # of an attempt that was given up
            if finished.summary is None:
                group.owner.on_failed(group, finished.sample, f"{self._rollout.names[engine]}: {finished.error}")
                continue
            group.add(finished, TrajectoryRef(chunk, index))
            self._add_running(engine, -1)
            if group.is_sampled:
                del self._groups[group.group_id], self._engine_of[group.group_id]
            if not self._whole_groups:
                ready.append([(group, group.attempt, finished.sample, group.found[finished.sample][1])])
            elif group.is_sampled:
                ready.append([(group, group.attempt, sample, ref) for sample, (_, ref) in sorted(group.found.items())])
            group.owner.on_sampled(group, finished.sample)
        self.scoring.put(ready)
        self._listen(engine)

    def _begin_score(self, worker: int, units: list[list[Sample]]) -> tuple[Any, tuple[list[Sample], Any]]:
        samples = [sample for unit in units for sample in unit]
        items = [(group.prompt, ref) for group, _, _, ref in samples]
        scored, texts = self._pool.begin_score(worker, items, self.step)
        return scored, (samples, texts)

    def _scored(self, units: list[list[Sample]], value: Any, extra: tuple[list[Sample], Any]) -> None:
        (rewards, logged), (samples, texts) = value, extra
        if any(group.group_id >= 0 for group, *_ in samples):  # what an evaluation notes is not training's
            for name, value in logged.items():
                self._logged.setdefault(name, []).append(value)
        for index, ((group, attempt, sample, _), reward) in enumerate(zip(samples, rewards, strict=True)):
            if attempt != group.attempt:
                continue
            group.rewards[sample] = replace(reward, response=TextRef(texts, index))
            if group.is_scored:
                group.owner.on_scored(group)

    def _late(self, what: str) -> str:
        running = [
            f"{self._rollout.names[engine]} ({count} responses)" for engine, count in self._running.items() if count
        ]
        if not running and not self.scoring.is_idle:
            running = ["the reward workers"]
        return f"{what}: no answer within {self._deadline_s:g} s from {', '.join(running) or 'the reference workers'}"


class _Caller:
    """Owner of groups that somebody waits for at once."""

    def __init__(self) -> None:
        self.num_scored = 0

    def is_past(self, count: int) -> bool:
        return self.num_scored > count

    def on_sampled(self, group: PendingGroup, sample: int) -> None:
        pass

    def on_failed(self, group: PendingGroup, sample: int, error: str) -> None:
        raise WorkerError(f"rollout: prompt {group.prompt.index}, sample {sample} failed: {error}")

    def on_scored(self, group: PendingGroup) -> None:
        self.num_scored += 1
