"""Trackers: further places for a run's metrics besides its own `metrics.jsonl`. One file each.

A tracker is a class, registered under the name that `logging.trackers` gives, or a class of yours, `path.py:Class`. Its
constructor takes the `TrackedRun` and keyword-only options, and opens it; `write` and `close` are the rest of its
interface. It may block and raise: each tracker lives on a thread of its own (`threads.py`).

A class may register with facts:
    imports=("module",)     its library, imported before Ray starts; its own file imports it only inside the class
    extra="name"            the extra of rlsys that installs it

Not here: the metrics themselves (`rlsys/metrics/step.py` and the modules that measure them), and the files of a run's
folder, `metrics.jsonl` among them (`rlsys/run_folder/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlsys.registry import Registry


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is opened for."""

    run_dir: Path
    config: Mapping[str, Any]  # as plain mappings, lists and values
    resume_step: int  # 0 for a new run
    run_id: str = ""  # twelve letters and digits, the same each time this run is resumed


class Tracker(Protocol):
    """An open tracker. All calls come from one thread."""

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Record one step's row; values may be None, NaN or infinite. Resuming repeats steps after the checkpoint."""

    def close(self) -> None:
        """End the record: the run has ended."""


registry: Registry[Callable[..., Tracker]] = Registry("tracker", __name__)
register = registry.register
