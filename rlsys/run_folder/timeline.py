"""`timeline.json`: what each worker did when, in Trace Event format, which Perfetto opens (ui.perfetto.dev).

The format allows the closing bracket to be missing, so a run that was cut off leaves a file that opens too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlsys.errors import DataError
from rlsys.run_folder.layout import TIMELINE
from rlsys.runtime.spans import Span

MIN_IDLE_S = 1e-3  # shorter gaps between spans are not written as idle time


def timeline_path(run_dir: Path, resume_step: int) -> Path:
    """Return the file of a start of the run; a resumed run has one of its own beside the first."""
    return run_dir / (f"{TIMELINE}-from-{resume_step}.json" if resume_step else f"{TIMELINE}.json")


class TimelineWriter:
    """The writer of one lane per worker, with the time between its spans as idle.

    The spans of one lane must be added in the order of time.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._file.write("[")
        self._is_empty = True
        self._lanes: dict[str, int] = {}
        self._busy_until: dict[str, float] = {}

    def add(self, lane: str, spans: Sequence[Span]) -> None:
        """Write a worker's spans, which may contain each other."""
        if lane not in self._lanes:
            self._lanes[lane] = len(self._lanes)
            self._event("thread_name", "M", lane, args={"name": lane})
            self._event("thread_sort_index", "M", lane, args={"sort_index": self._lanes[lane]})
        # By start, and the longer first: of two that start together, the outer span opens first.
        for name, start, end in sorted(spans, key=lambda span: (span[1], -span[2])):
            busy_until = self._busy_until.get(lane)
            if busy_until is not None and start - busy_until > MIN_IDLE_S:
                self._complete("idle", lane, busy_until, start)
            self._complete(name, lane, start, end)
            self._busy_until[lane] = max(end, busy_until or end)
        self._file.flush()

    def close(self) -> None:
        """Write the closing bracket and close the file."""
        self._file.write("\n]\n")
        self._file.close()

    def _complete(self, name: str, lane: str, start: float, end: float) -> None:
        self._event(name, "X", lane, ts=round(start * 1e6), dur=max(round((end - start) * 1e6), 1), cat=name)

    def _event(self, name: str, phase: str, lane: str, **fields: Any) -> None:
        event = {"name": name, "ph": phase, "pid": 1, "tid": self._lanes[lane], **fields}
        self._file.write(("\n" if self._is_empty else ",\n") + json.dumps(event))
        self._is_empty = False


def timeline_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a timeline, which may still be growing; an empty one for a line with only a bracket.

    Raises:
        DataError: a whole line is not an event.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            event = _parsed(line, f"{path}, line {number}")
            if event is None:
                return
            yield event


def _parsed(line: bytes, where: str) -> dict[str, Any] | None:
    """Return the event of a line; None for one that is being written."""
    text = line.strip().removeprefix(b"[").removesuffix(b"]").strip().removesuffix(b",")
    try:
        event: dict[str, Any] = json.loads(text or b"{}")
    except ValueError as error:
        if not line.endswith(b"\n"):
            return None
        raise DataError(f"{where}: not one event per line, as runs write it ({error})") from error
    return event
