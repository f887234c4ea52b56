"""Errors meant for people: each says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlsysError(Exception):
    """Base of every error that rlsys raises on purpose; the command line prints it without a traceback."""


class ConfigError(RlsysError):
    """A run that cannot work as it is configured; raised before Ray starts."""


class DataError(RlsysError):
    """An unusable data file or row; the message names the file and the row."""


class WorkerError(RlsysError):
    """A failed worker; the message names the worker, what it was doing and the cause."""


class WorkerDiedError(WorkerError):
    """A worker whose process has ended; `worker` is its name."""

    def __init__(self, message: str, worker: str = "") -> None:
        super().__init__(message)
        self.worker = worker


class LostDataError(RlsysError):
    """Data that a worker had made, and that is gone with the node that held it; the message names the work."""


class SampleError(WorkerError):
    """An engine could not sample one response; the group may be sampled again elsewhere."""


class DeadlineError(RlsysError):
    """A wait that took longer than its deadline; the message names who did not answer."""


class NoRoomError(RlsysError):
    """A disk without room for what is being written; the message names the file."""


class ScheduleError(RlsysError):
    """An event that the scheduler rules out, which is a bug of its caller; the message names the group."""


class WeightMismatchError(RlsysError):
    """A disagreement: an engine does not hold the learner's weights, or computes other log-probabilities with them."""


class SuspectPolicyError(WeightMismatchError):
    """A disagreement that was found late: steps may have been trained on samples of other weights meanwhile."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None when none is similar."""
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown `name`: the closest known name, or all of them when none is similar."""
    names = sorted(known)
    close = closest(name, names)
    if close is not None:
        return f"did you mean '{close}'?"
    return f"known: {', '.join(names)}" if names else "none are known"
