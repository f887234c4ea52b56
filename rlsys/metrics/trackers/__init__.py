"""Trackers: where a run's metrics go besides its own `metrics.jsonl`. One file each.

A tracker is a class registered under the name that `logging.trackers` calls it by, or outside code `path.py:Class`. It
is opened by its constructor, whose keyword-only parameters are its options, and has `write` and `close`. It may block
and raise: it lives on a thread of its own (`threads.py`).

A class may register with facts:
    imports=("module",)     its library, imported before Ray starts; the file itself imports it inside the class only
    extra="name"            the extra of rlsys that brings it
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlsys.registry import Registry

_ID_LOCK = threading.Lock()


@dataclass(frozen=True)
class Start:
    """What a tracker is opened with."""

    run_dir: Path
    config: Mapping[str, Any]  # of the run, as plain mappings, lists and values
    resume_step: int  # 0: the run starts
    say: Callable[[str], None]

    @property
    def run_id(self) -> str:
        """Twelve letters and digits, the same whenever the run in this folder is resumed."""
        path = self.run_dir / "tracker_id"
        with _ID_LOCK:  # trackers open side by side
            if not path.exists():
                path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
            return path.read_text(encoding="utf-8").strip()


class Tracker(Protocol):
    """What a tracker's class makes; all three calls come from one thread."""

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """One step's row. A value may be None, NaN or infinite. Steps after a checkpoint come again on resuming."""

    def close(self) -> None:
        """The run has ended."""


registry: Registry[Callable[..., Tracker]] = Registry("tracker", __name__)
register = registry.register
