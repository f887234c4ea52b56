"""`timeline.json`: who did what when, in Trace Event format; it opens in Perfetto (ui.perfetto.dev).

The format lets the closing bracket be missing, so a run that was cut off leaves a file that opens too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlsys.runtime.spans import Span

MIN_IDLE_S = 1e-3
"""Shorter gaps are not worth an event."""


def timeline_path(run_dir: Path, resume_step: int) -> Path:
    """A resumed run has a file of its own beside the first."""
    return run_dir / (f"timeline-from-{resume_step}.json" if resume_step else "timeline.json")


class Timeline:
    """A lane per worker; what lies between its spans is idle. Call `add` for a lane in the order of time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._file.write("[")
        self._is_empty = True
        self._lanes: dict[str, int] = {}
        self._busy_until: dict[str, float] = {}

    def add(self, lane: str, spans: Sequence[Span]) -> None:
        """Write a worker's spans. Spans of one lane may contain each other."""
        if lane not in self._lanes:
            self._lanes[lane] = len(self._lanes)
            self._event("thread_name", "M", lane, args={"name": lane})
            self._event("thread_sort_index", "M", lane, args={"sort_index": self._lanes[lane]})
        for name, start, end in sorted(spans, key=lambda span: (span[1], -span[2])):
            before = self._busy_until.get(lane)
            if before is not None and start - before > MIN_IDLE_S:
                self._complete("idle", lane, before, start)
            self._complete(name, lane, start, end)
            self._busy_until[lane] = max(end, before or end)
        self._file.flush()

    def close(self) -> None:
        """Make the file whole."""
        self._file.write("\n]\n")
        self._file.close()

    def _complete(self, name: str, lane: str, start: float, end: float) -> None:
        self._event(name, "X", lane, ts=round(start * 1e6), dur=max(round((end - start) * 1e6), 1), cat=name)

    def _event(self, name: str, phase: str, lane: str, **fields: Any) -> None:
        event = {"name": name, "ph": phase, "pid": 1, "tid": self._lanes[lane], **fields}
        self._file.write(("\n" if self._is_empty else ",\n") + json.dumps(event))
        self._is_empty = False
