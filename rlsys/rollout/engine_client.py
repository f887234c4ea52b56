"""One rollout worker as the driver sees it: groups in, trajectories out as they finish."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from rlsys.errors import RlsysError, SampleError, WorkerDiedError
from rlsys.runtime.calls import Calls
from rlsys.types import Finished, GroupRequest, Prompt, Sample, Sampling, TrajectoryRef

# An engine without finished trajectories answers a poll after this many seconds.
POLL_S = 30.0
# Deadline of submitting, cancelling and polling. Each answers within POLL_S, so only a worker that hangs misses it.
DEADLINE_S = 300.0


class _Results(AsyncIterator[list[Sample]]):
    """The trajectories of one request, in lists as they are delivered."""

    def __init__(self, num_samples: int) -> None:
        self.num_missing = num_samples  # trajectories that the engine still has
        self._delivered: list[Sample] = []
        self._error: RlsysError | None = None
        self._wake: asyncio.Future[None] | None = None

    async def __anext__(self) -> list[Sample]:
        while not self._delivered and self._error is None:
            if self.num_missing == 0:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        if not self._delivered:
            assert self._error is not None
            raise self._error
        delivered, self._delivered = self._delivered, []
        return delivered

    def add(self, sample: Sample) -> None:
        self.num_missing -= 1
        self._delivered.append(sample)
        self._notify()

    def fail(self, error: RlsysError) -> None:
        self._error = error
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class EngineClient:
    """A client of one rollout worker: sends it requests and polls it for finished trajectories.

    One poll at a time waits in the worker, however many groups are open. Token arrays stay in the object store, one
    chunk per poll. A failure of the worker is raised in every open group.
    """

    def __init__(self, name: str, worker: Any, calls: Calls, *, linger_s: float) -> None:
        """Make the client of `worker`.

        Args:
            name: the worker's name, for errors.
            worker: its Ray handle.
            calls: awaits its answers.
            linger_s: how long the worker gathers what finishes before it answers a poll.
        """
        self.name = name
        self.num_running = 0
        self.worker = worker
        self._calls = calls
        self._linger_s = linger_s
        self._ids = itertools.count()
        self._open: dict[int, _Results] = {}
        self._outgoing: list[tuple[GroupRequest, int]] = []
        self._is_polling = False

    @asynccontextmanager
    async def sample(
        self,
        prompt: Prompt,
        sampling_params: Sequence[Sampling],
        *,
        stream: int,
        policy_version: int,
        done: Collection[int] = (),
    ) -> AsyncIterator[AsyncIterator[list[Sample]]]:
        """Sample one group; see `rlsys.orchestrator.sampling.Engine`. The engine must have `policy_version`."""

        def make(number: int) -> GroupRequest:
            return GroupRequest(number, prompt.token_ids, tuple(sampling_params), stream, frozenset(done))

        async with self.open(make, policy_version) as results:
            yield results

    @asynccontextmanager
    async def open(
        self, make: Callable[[int], GroupRequest], policy_version: int
    ) -> AsyncIterator[AsyncIterator[list[Sample]]]:
        """Send the request that `make` gives for its number; yields as `sample` does."""
        request = make(next(self._ids))
        results = self._open[request.request_id] = _Results(len(request.missing))
        self._add_running(len(request.missing))
        if not self._outgoing:
            # Groups that start in the same turn of the event loop go to the worker in one call.
            asyncio.get_running_loop().call_soon(self._submit)
        self._outgoing.append((request, policy_version))
        try:
            yield results
        finally:
            del self._open[request.request_id]
            if results.num_missing:  # the group ended early: a sample failed, or the run is over
                self._add_running(-results.num_missing)
                self._send(self._control(self.worker.cancel.remote([request.request_id]), "cancelling"))

    def _submit(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        # A group may sample under a newer version than it was started with, never under an older one.
        version = max(version for _, version in outgoing)
        submitted = self.worker.submit.remote([request for request, _ in outgoing], version)
        self._send(self._control(submitted, "rollout"))
        if not self._is_polling:
            self._is_polling = True
            self._send(self._poll())

    def _send(self, work: Coroutine[Any, Any, None]) -> None:
        self._calls.background.start(work)

    async def _control(self, ref: Any, what: str) -> None:
        """Wait for a call that answers at once."""
        try:
            await self._calls.result(ref, who=self.name, what=what, deadline_s=DEADLINE_S, is_work=False)
        except RlsysError as error:
            self._fail(error)

    async def _poll(self) -> None:
        """Fetch finished trajectories while any request is running."""
        try:
            while self.num_running:
                finished, chunk = self.worker.finished.options(num_returns=2).remote(POLL_S, self._linger_s)
                self._deliver(
                    await self._calls.result(
                        finished, who=self.name, what="rollout", deadline_s=DEADLINE_S, is_work=False
                    ),
                    chunk,
                )
        except RlsysError as error:
            self._fail(error)
        finally:
            self._is_polling = False

    def _deliver(self, finished: Sequence[Finished], chunk: Any) -> None:
        for index, one in enumerate(finished):
            results = self._open.get(one.request_id)
            if results is None:
                continue  # its group has ended this attempt
            if one.summary is None:
                # It stays counted as running: its group ends now, and `sample` takes off all that is missing at once.
                failure = f"sample {one.sample}: {one.error}"
                results.fail(WorkerDiedError(failure, one.lost) if one.lost else SampleError(failure))
                continue
            self._add_running(-1)
            results.add(Sample(one.sample, one.summary, TrajectoryRef(chunk, index)))

    def _fail(self, error: RlsysError) -> None:
        for results in self._open.values():
            results.fail(error)

    def _add_running(self, count: int) -> None:
        before, self.num_running = self.num_running, self.num_running + count
        if bool(before) != bool(self.num_running):
            occupancy = self._calls.occupancy
            (occupancy.end if before else occupancy.begin)(self.name)
