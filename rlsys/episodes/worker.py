"""One episode worker: it plays episodes, each in a process of its own, and asks engines for the policy's turns."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from functools import partial

import numpy as np

from rlsys.episodes.player import Player
from rlsys.episodes.setup import EpisodeSetup
from rlsys.episodes.slots import Slots
from rlsys.episodes.turn_client import TurnClient
from rlsys.errors import WorkerDiedError
from rlsys.rollout.finished_queue import FinishedQueue
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.logs import FailureLog, log_worker
from rlsys.runtime.spans import Span, SpanRecorder
from rlsys.scoring.caller import Caller
from rlsys.types import EpisodeRequest, Finished, Sampling, Trajectory, TrajectorySummary

logger = logging.getLogger(__name__)


class EpisodeWorker:
    """A Ray worker with the interface of a rollout worker: `submit` requests, then call `finished` for the answers."""

    def __init__(self, setup: EpisodeSetup, caller: Caller | None = None) -> None:
        log_worker()
        if caller is not None:
            caller.apply()
        self._setup = setup
        self._slots = Slots(setup.spec, setup.num_slots)
        self._player: Player
        self._tasks: dict[int, set[asyncio.Task[None]]] = {}  # by request id
        self._spans = SpanRecorder()
        self._finished = FinishedQueue(self._spans, "play")
        self._failures = FailureLog(logger)
        self._engines: dict[str, TurnClient] = {}

    async def start(self) -> None:
        """Import the environment's code and load the tokenizer; raises WorkerError where the first fails."""
        _, self._player = await asyncio.gather(self._slots.start(), asyncio.to_thread(self._setup.player, self._slots))
        freeze_started()

    async def submit(self, requests: Sequence[EpisodeRequest], _policy_version: int) -> None:
        """Start playing every request; the answers come through `finished`."""
        for request in requests:
            for sample, sampling in request.missing.items():
                task = asyncio.create_task(self._answer(request, sample, sampling))
                self._tasks.setdefault(request.request_id, set()).add(task)
                self._finished.started()
                task.add_done_callback(partial(self._end, request.request_id))

    async def finished(self, max_wait_s: float, linger_s: float) -> tuple[list[Finished], list[Trajectory | None]]:
        """Wait for answers, see `RolloutWorker.finished`."""
        answers = await self._finished.take(max_wait_s, linger_s)
        return [finished for finished, _ in answers], [trajectory for _, trajectory in answers]

    async def cancel(self, request_ids: Collection[int]) -> None:
        """Stop playing for these requests and drop their results."""
        self._finished.drop(set(request_ids))
        tasks = [task for request_id in request_ids for task in self._tasks.get(request_id, ())]
        for task in tasks:
            task.cancel()  # which ends its process, and its turn in the engine
        await asyncio.gather(*tasks, return_exceptions=True)

    async def take_spans(self) -> list[Span]:
        """Return the spans recorded since the last call."""
        if self._finished.num_running:
            self._finished.record_span()
        return self._spans.take()

    async def _answer(self, request: EpisodeRequest, sample: int, sampling: Sampling) -> None:
        """Play one episode and queue it; a failure of its engine is queued as the answer."""
        key, started = (request.request_id, sample), time.time()

        try:
            client = self._engine(request)
            generate = partial(client.sample, request.stream, sample, request.policy_version)
            trajectory = await self._player.play(request.prompt, sampling, generate)
        except Exception as error:  # not CancelledError: nobody waits for the result of a cancelled sample
            self._failures.add(f"request {key} failed", error, with_traceback=True)
            lost = error.worker if isinstance(error, WorkerDiedError) else ""
            self._finished.put(Finished(*key, summary=None, error=f"{type(error).__name__}: {error}", lost=lost), None)
        else:
            summary = summary_of(trajectory, request.policy_version, started, time.time())
            self._finished.put(Finished(*key, summary), trajectory)

    def _engine(self, request: EpisodeRequest) -> TurnClient:
        """Return the client of a request's engine; an engine that was replaced has another process."""
        known = self._engines.get(request.engine_name)
        if known is None or known.engine != request.engine:
            known = self._engines[request.engine_name] = TurnClient(request.engine_name, request.engine)
        return known

    def _end(self, request_id: int, task: asyncio.Task[None]) -> None:
        self._finished.ended()
        tasks = self._tasks[request_id]
        tasks.discard(task)
        if not tasks:
            del self._tasks[request_id]


def summary_of(trajectory: Trajectory, policy_version: int, started_s: float, finished_s: float) -> TrajectorySummary:
    """Return what the driver gets to know; an episode without a turn counts as of `policy_version`."""
    episode = trajectory.episode
    assert episode is not None
    return TrajectorySummary(
        num_tokens=trajectory.num_tokens,
        num_response_tokens=int(trajectory.loss_mask.sum()),
        finish_reason=trajectory.finish_reason,
        policy_version=min((span.policy_version for span in trajectory.versions), default=policy_version),
        engine=trajectory.engine,
        is_finite=bool(np.isfinite(trajectory.behavior_logprobs).all()),
        started_s=started_s,
        finished_s=finished_s,
        end=episode.end,
        num_turns=len(episode.turns),
        num_calls=episode.num_calls,
        environment_s=sum(turn.environment_s for turn in episode.turns),
    )
