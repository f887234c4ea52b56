"""Waiting for workers: every wait has a deadline and a named cause."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import ray

from rlsys.errors import DeadlineError, RlsysError, WorkerDiedError, WorkerError

K = TypeVar("K")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
"""Ray colours its tracebacks; in a log file that is noise."""
SETTLE_S = 3.0
"""How long after a first failure others are still listened to."""


def gather(calls: Mapping[K, ray.ObjectRef], *, what: str, deadline_s: float) -> dict[K, Any]:
    """Results of `calls`, keyed as given; the keys name the workers in errors.

    A failure is raised without waiting for the healthy: in a collective they would only time out later and hide the
    cause. It is given `SETTLE_S`, because the peers of a worker that died can hear of it before the driver does, and
    then fail first. Raises WorkerError naming worker and cause (a death before all else), RlsysError subclasses
    unchanged, DeadlineError naming those that had not answered.
    """
    owners = {ref: key for key, ref in calls.items()}
    pending = list(owners)
    results: dict[K, Any] = {}
    failures: list[RlsysError] = []
    end = time.monotonic() + deadline_s
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, end - time.monotonic()))
        if not ready:
            break
        for ref in ready:
            try:
                results[owners[ref]] = fetch(ref, who=str(owners[ref]), what=what)
            except RlsysError as error:
                end = min(end, time.monotonic() + SETTLE_S) if not failures else end
                failures.append(error)
    if failures:
        raise _most_telling(failures)
    if pending:
        late = ", ".join(sorted(str(owners[ref]) for ref in pending))
        raise DeadlineError(f"{what}: no answer within {deadline_s:g} s from {late}")
    return {key: results[key] for key in calls}


def first_done(refs: Iterable[ray.ObjectRef], end: float) -> ray.ObjectRef | None:
    """One of `refs` whose call has finished, however; None when none has by `end` (of `time.monotonic`)."""
    ready, _ = ray.wait(list(refs), num_returns=1, timeout=max(0.0, end - time.monotonic()))
    return ready[0] if ready else None


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
