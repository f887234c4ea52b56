"""Errors meant for people: each says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlsysError(Exception):
    """Base of every error that rlsys raises on purpose; the command line prints it without a traceback."""


class ConfigError(RlsysError):
    """The run as configured cannot work; raised before Ray starts."""


class DataError(RlsysError):
    """A dataset file or row is unusable; the message names file and row."""


class WorkerError(RlsysError):
    """A worker failed; the message names the worker, what it was doing and the cause."""


class WorkerDiedError(WorkerError):
    """A worker's process is gone."""


class SampleError(WorkerError):
    """An engine could not sample one response; the group may be sampled again elsewhere."""


class DeadlineError(RlsysError):
    """A wait ran past its deadline; the message names who had not answered."""


class ScheduleError(RlsysError):
    """The scheduler was told what cannot have happened; the message names the group. A bug of its caller."""


class WeightMismatchError(RlsysError):
    """Engines and learner disagree about the log-probability of the same tokens."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown `name`: the closest known one, or the whole list when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if names else "none are known"
