"""Waiting for Ray calls: every wait has a deadline, and its error names the worker and the work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import ray

from rlsys.errors import DeadlineError, LostDataError, RlsysError, WorkerDiedError, WorkerError
from rlsys.runtime.background import SETTLE_S, Background, cancel, may_be_a_consequence, root_cause
from rlsys.runtime.logs import end_of_log, log_file
from rlsys.runtime.occupancy import Occupancy
from rlsys.runtime.stacks import stack_of

K = TypeVar("K")
# For an object whose worker has finished it: only the way from another node takes time.
READ_DEADLINE_S = 300.0
LOST = ray.exceptions.ObjectLostError  # of an object whose node is gone
# Ray colours its tracebacks; in a log file the codes are noise.
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Calls:
    """The driver's open calls: awaits them, and measures how long each worker was busy."""

    def __init__(self, log_dir: Path | None = None) -> None:
        """Wait for calls of workers that log to `log_dir`: the error of one that died shows the end of its log."""
        self._log_dir = log_dir
        self.workers: dict[str, Any] = {}  # handles by name, of those that tell what they do when they are late
        self.occupancy = Occupancy()
        self.background = Background()

    async def result(self, ref: Any, *, who: str, what: str, deadline_s: float, is_work: bool = True) -> Any:
        """Wait for one call.

        Args:
            ref: its Ray reference.
            who: the worker, for errors and for `occupancy`.
            what: the work, for errors.
            deadline_s: seconds from now on.
            is_work: whether the worker is busy until it answers; False for calls that mostly wait.

        Raises:
            DeadlineError: no answer in time.
            WorkerDiedError: the worker's process is gone.
            WorkerError: the call failed; an RlsysError of the worker is raised unchanged.
            LostDataError: what was passed to the call, or is read, is gone with the node that held it.
        """
        try:
            async with asyncio.timeout(deadline_s):
                return await (self._work(ref, who, what) if is_work else self._fetch(ref, who, what))
        except TimeoutError as error:
            late = f"{what}: no answer within {deadline_s:g} s from {who}"
            raise DeadlineError(late + await self._what_they_do([who])) from error

    async def read(self, ref: Any, *, who: str, what: str) -> Any:
        """Read an object that a worker has left in the object store; raises what `result` does."""
        return await self.result(ref, who=who, what=what, deadline_s=READ_DEADLINE_S, is_work=False)

    def put(self, value: Any) -> Any:
        """Store a value for workers; return a reference that this process owns."""
        return ray.put(value)

    async def gather(
        self, calls: Mapping[K, Any], *, what: str, deadline_s: float, is_work: bool = True
    ) -> dict[K, Any]:
        """Wait for all of `calls`; the keys name the workers in errors, and `is_work` is as for `result`.

        A failure does not wait for the healthy: in a collective they would only time out later and hide the cause.
        Others have `SETTLE_S` to fail too, and the most telling failure is raised.

        Returns:
            Results under the keys of `calls`, in their order.
        """
        failures: list[BaseException] = []  # in the order in which they happen

        def note(wait: asyncio.Future[Any]) -> None:
            if not wait.cancelled() and (error := wait.exception()) is not None:
                failures.append(error)

        wait_for = self._work if is_work else self._fetch
        waits = {key: asyncio.ensure_future(wait_for(ref, str(key), what)) for key, ref in calls.items()}
        for wait in waits.values():
            wait.add_done_callback(note)
        try:
            if waits:
                await asyncio.wait(waits.values(), timeout=deadline_s, return_when=asyncio.FIRST_EXCEPTION)
            if failures and may_be_a_consequence(failures):
                await asyncio.wait(waits.values(), timeout=SETTLE_S)
            if failures:
                raise root_cause(failures)
            late = sorted(str(key) for key, wait in waits.items() if not wait.done())
            if late:
                said = f"{what}: no answer within {deadline_s:g} s from {', '.join(late)}"
                raise DeadlineError(said + await self._what_they_do(late))
            return {key: wait.result() for key, wait in waits.items()}
        finally:
            await cancel(waits.values())

    async def settle(self, calls: Mapping[K, Any], *, what: str, deadline_s: float) -> None:
        """Wait until every call has ended, however; raises DeadlineError for those that have not."""
        waits = {key: asyncio.ensure_future(self._work(ref, str(key), what)) for key, ref in calls.items()}
        try:
            if waits:
                await asyncio.wait(waits.values(), timeout=deadline_s)
            for wait in waits.values():
                _ = wait.done() and wait.exception()  # or asyncio logs it as one that nobody has seen
            late = sorted(str(key) for key, wait in waits.items() if not wait.done())
            if late:
                raise DeadlineError(f"{what}: still running after {deadline_s:g} s on {', '.join(late)}")
        finally:
            await cancel(waits.values())

    async def _what_they_do(self, names: list[str]) -> str:
        """Return the stacks of workers that are late, for the error that says so."""
        log_dir, known = self._log_dir, [name for name in names if name in self.workers]
        if log_dir is None:
            return ""
        found = await asyncio.gather(*(stack_of(self.workers[name], log_file(log_dir, name)) for name in known))
        return "".join(f"\n{name}: {stack}" for name, stack in zip(known, found, strict=True))

    async def _work(self, ref: Any, who: str, what: str) -> Any:
        with self.occupancy.busy(who):
            return await self._fetch(ref, who, what)

    async def _fetch(self, ref: Any, who: str, what: str) -> Any:
        try:
            return await fetch(ref, who=who, what=what)
        except WorkerDiedError as error:
            raise WorkerDiedError(f"{error}{end_of_log(self._log_dir, who)}", who) from error


async def fetch(ref: Any, *, who: str, what: str) -> Any:
    """Wait for a call or an object under the caller's deadline; translate Ray's errors as `Calls.result` says."""
    try:
        return await ref
    # This handler comes first: the error of a call that raised is a RayError too, but its worker lives.
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RlsysError):
            raise cause from None
        if isinstance(cause, LOST):
            raise LostDataError(f"{what}: {who} got something that is lost: {type(cause).__name__}: {cause}") from error
        where = ANSI.sub("", str(error)).rstrip()
        raise WorkerError(f"{what}: {who} failed: {type(cause).__name__}: {cause}\n{where}") from error
    except LOST as error:
        raise LostDataError(f"{what}: what {who} held is lost: {type(error).__name__}: {error}") from error
    except ray.exceptions.RayError as error:
        raise WorkerDiedError(f"{what}: {who} is gone: {type(error).__name__}: {error}", who) from error
