"""An episode worker's client of one engine: it sends turns together that are asked for together, and polls for them."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Coroutine
from typing import Any

import numpy as np

from rlsys.errors import RlsysError, SampleError
from rlsys.runtime.calls import fetch
from rlsys.types import Finished, GroupRequest, Sampling, Trajectory

# An engine without finished turns answers a poll after this many seconds; what finishes within so short a time comes
# together.
POLL_S, LINGER_S = 30.0, 0.002


class TurnClient:
    """A client that samples turns on one engine; when the engine is gone, every open turn fails."""

    def __init__(self, name: str, engine: Any) -> None:
        """Ask nothing yet; `engine` is the rollout worker's Ray handle, and `name` its name for errors."""
        self.name = name
        self.engine = engine
        self._caller = uuid.uuid4().hex  # several clients may use an engine
        self._ids = itertools.count()
        self._open: dict[int, asyncio.Future[Trajectory]] = {}
        self._outgoing: list[tuple[GroupRequest, int]] = []
        self._is_polling = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def sample(
        self, stream: int, sample: int, policy_version: int, ids: np.ndarray, sampling: Sampling, turn: int
    ) -> Trajectory:
        """Sample one turn and return it without its prompt; a cancelled call ends it.

        Args:
            stream: the group's number for random numbers.
            sample: the episode's number in its group.
            policy_version: that the engine must have, or a newer one.
            ids: everything before the turn, [L] int32.
            sampling: how to sample; one response.
            turn: the turn's number.

        Raises:
            SampleError: the engine could not sample it.
            WorkerDiedError: the engine is gone.
            WorkerError: its weights are older than `policy_version`.
        """
        number = next(self._ids)
        request = GroupRequest(number, ids, (sampling,), stream, entropy=(sample, turn), is_turn=True)
        found = self._open[number] = asyncio.get_running_loop().create_future()
        if not self._outgoing:
            # Turns that are asked for in the same turn of the event loop go to the engine in one call.
            asyncio.get_running_loop().call_soon(self._submit)
        self._outgoing.append((request, policy_version))
        try:
            return await found
        except asyncio.CancelledError:
            self._start(self._control(self.engine.cancel.remote([number], self._caller)))
            raise
        finally:
            del self._open[number]

    def _submit(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        version = max(version for _, version in outgoing)
        requests = [request for request, _ in outgoing]
        self._start(self._control(self.engine.submit.remote(requests, version, self._caller)))
        if not self._is_polling:
            self._is_polling = True
            self._start(self._poll())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _control(self, ref: Any) -> None:
        try:
            await fetch(ref, who=self.name, what="a turn")
        except RlsysError as error:
            self._fail(error)

    async def _poll(self) -> None:
        """Fetch finished turns while any is open."""
        try:
            while self._open:
                answer = self.engine.finished.remote(POLL_S, LINGER_S, self._caller)
                self._deliver(*await fetch(answer, who=self.name, what="a turn"))
        except RlsysError as error:
            self._fail(error)
        finally:
            self._is_polling = False

    def _deliver(self, finished: list[Finished], trajectories: list[Trajectory | None]) -> None:
        for one, trajectory in zip(finished, trajectories, strict=True):
            found = self._open.get(one.request_id)
            if found is None or found.done():
                continue  # its episode has ended
            if trajectory is None:
                found.set_exception(SampleError(str(one.error)))
            else:
                found.set_result(trajectory)

    def _fail(self, error: RlsysError) -> None:
        for found in self._open.values():
            if not found.done():
                found.set_exception(error)
