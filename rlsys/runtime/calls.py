"""Waiting for workers: every wait has a deadline and a named cause."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, TypeVar

import ray

from rlsys.errors import DeadlineError, RlsysError, WorkerError

K = TypeVar("K")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
"""Ray colours its tracebacks; in a log file that is noise."""


def gather(calls: Mapping[K, ray.ObjectRef], *, what: str, deadline_s: float) -> dict[K, Any]:
    """Results of `calls`, keyed as given; the keys name the workers in errors.

    The first failure is raised at once, without waiting for the others: in a collective the healthy side would only
    time out later and hide the cause. Raises WorkerError naming worker and cause, RlsysError subclasses unchanged,
    DeadlineError naming those that had not answered.
    """
    owners = {ref: key for key, ref in calls.items()}
    pending = list(owners)
    results: dict[K, Any] = {}
    end = time.monotonic() + deadline_s
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, end - time.monotonic()))
        if not ready:
            late = ", ".join(sorted(str(owners[ref]) for ref in pending))
            raise DeadlineError(f"{what}: no answer within {deadline_s:g} s from {late}")
        for ref in ready:
            results[owners[ref]] = fetch(ref, who=str(owners[ref]), what=what)
    return {key: results[key] for key in calls}


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
        raise WorkerError(f"{what}: {who} is gone: {type(error).__name__}: {error}") from error
