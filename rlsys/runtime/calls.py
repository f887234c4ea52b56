"""Waiting for workers: every wait has a deadline and a named cause."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import ray

from rlsys.errors import DeadlineError, RlsysError, WorkerDiedError, WorkerError
from rlsys.runtime.occupancy import Occupancy

K = TypeVar("K")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
"""Ray colours its tracebacks; in a log file that is noise."""
SETTLE_S = 3.0
"""How long after a first failure others are still listened to."""
MAX_WAIT_S = 1.0
"""A signal to the driver is answered this soon, whatever it waits for."""


@dataclass(frozen=True)
class _Open:
    """One unfinished call."""

    who: str
    what: str
    is_work: bool
    end: float  # on the monotonic clock
    done: Callable[[Any], None]


class Calls:
    """The driver's unfinished calls. Whatever the driver waits for, it serves all of them meanwhile.

    That is how sampling goes on while the learner works: one thread, no locks, no callbacks at odd moments.
    """

    def __init__(self) -> None:
        self._open: dict[ray.ObjectRef, _Open] = {}
        self._failures: list[RlsysError] = []
        self.occupancy = Occupancy()

    def start(
        self,
        ref: ray.ObjectRef,
        *,
        who: str,
        what: str,
        deadline_s: float,
        done: Callable[[Any], None],
        is_work: bool = True,
    ) -> None:
        """Watch a call and hand its value to `done`. A failure is raised in the next wait, or the one going on.

        `is_work` says whether the worker is busy until it answers.
        """
        self._open[ref] = _Open(who, what, is_work, time.monotonic() + deadline_s, done)
        if is_work:
            self.occupancy.begin(who)

    def gather(self, calls: Mapping[K, ray.ObjectRef], *, what: str, deadline_s: float) -> dict[K, Any]:
        """Results of `calls`, keyed as given; the keys name the workers in errors.

        A failure is raised without waiting for the healthy: in a collective they would only time out later and hide
        the cause. It is given `SETTLE_S`, because the peers of a worker that died can hear of it before the driver
        does, and then fail first. Raises WorkerError naming worker and cause (a death before all else), RlsysError
        subclasses unchanged, DeadlineError naming those that had not answered.
        """
        results: dict[K, Any] = {}
        for key, ref in calls.items():
            self.start(ref, who=str(key), what=what, deadline_s=math.inf, done=partial(results.__setitem__, key))
        try:
            self.until(
                lambda: len(results) == len(calls),
                deadline_s=deadline_s,
                late=lambda: (
                    f"{what}: no answer within {deadline_s:g} s from "
                    + ", ".join(sorted(str(key) for key in calls if key not in results))
                ),
            )
        finally:
            for ref in [ref for ref in calls.values() if ref in self._open]:
                self._forget(ref)
        return {key: results[key] for key in calls}

    def until(self, ready: Callable[[], bool], *, deadline_s: float, late: Callable[[], str]) -> None:
        """Serve calls until `ready()`. Raises what failed, or DeadlineError with the text that `late` gives."""
        end = time.monotonic() + deadline_s
        while not ready():
            if time.monotonic() >= end:
                raise DeadlineError(late())
            self._serve(end)
            if self._failures:
                self._settle(ready)
                failures, self._failures = self._failures, []
                raise _most_telling(failures)

    def _settle(self, ready: Callable[[], bool]) -> None:
        """Listen a little longer: another failure may explain the first."""
        end = time.monotonic() + SETTLE_S
        while self._open and not ready() and time.monotonic() < end:
            self._serve(end)

    def _serve(self, end: float) -> None:
        """Wait for a call to finish, until `end` or the first deadline; hand over everything that has."""
        nearest = min([end, *(call.end for call in self._open.values())])
        timeout = max(0.0, min(nearest - time.monotonic(), MAX_WAIT_S))
        if not self._open:
            time.sleep(timeout)
            return
        ready, _ = ray.wait(list(self._open), num_returns=1, timeout=timeout)
        if ready and len(self._open) > 1:
            ready, _ = ray.wait(list(self._open), num_returns=len(self._open), timeout=0)
        for ref in ready:
            call = self._forget(ref)
            try:
                call.done(fetch(ref, who=call.who, what=call.what))
            except RlsysError as error:
                self._failures.append(error)
        now = time.monotonic()
        for ref, call in [(ref, call) for ref, call in self._open.items() if call.end <= now]:
            self._forget(ref)
            self._failures.append(DeadlineError(f"{call.what}: no answer in time from {call.who}"))

    def _forget(self, ref: ray.ObjectRef) -> _Open:
        call = self._open.pop(ref)
        if call.is_work:
            self.occupancy.end(call.who)
        return call


def _most_telling(failures: Sequence[RlsysError]) -> RlsysError:
    """A death explains its peers' broken connections, a failed check says more than the errors it causes elsewhere."""
    return min(failures, key=lambda error: 0 if isinstance(error, WorkerDiedError) else 1)


def fetch(ref: ray.ObjectRef, *, who: str, what: str) -> Any:
    """The value of one finished call; its failure as an error that names worker and task."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RlsysError):
            raise cause from None
        where = ANSI.sub("", str(error)).rstrip()
        raise WorkerError(f"{what}: {who} failed: {type(cause).__name__}: {cause}\n{where}") from error
    except ray.exceptions.RayError as error:
        raise WorkerDiedError(f"{what}: {who} is gone: {type(error).__name__}: {error}") from error
