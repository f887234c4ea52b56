"""The last steps of a run's timeline, in columns small enough for a page."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsys.errors import DataError
from rlsys.run_folder.reading import last_number

MAX_SPANS = 3000
"""Shown of a file: what a browser draws in a fraction of a second."""
MAX_FILES = 4
"""Shown of a run: a run has one of each time that it was resumed."""
MEMORY = 20 * MAX_SPANS
"""Spans held while reading a file: the last ones, from which the window is cut."""
ROLES = ("rollout", "reward", "reference", "critic", "learner")
"""From top to bottom: the way that a step's data takes."""
STEP_ENDS = ("learner/0", "broadcast")
"""The lane and span with which a step ends."""


@dataclass(frozen=True)
class Window:
    """What is shown of one file, a column entry a span. Times in seconds; `start` counts from `epoch_s`."""

    file: str
    epoch_s: float
    num_spans: int  # of the whole file
    lanes: list[str]
    names: list[str]
    lane: list[int]
    name: list[int]
    start: list[float]
    duration: list[float]
    steps: list[tuple[int, float]]  # number and end of each step within


@dataclass
class _Events:
    """The last spans of a file, as (start, duration, lane, name) in microseconds and numbers."""

    spans: deque[tuple[int, int, int, str]] = field(default_factory=lambda: deque(maxlen=MEMORY))
    lanes: dict[int, str] = field(default_factory=dict)
    num_spans: int = 0
    num_broadcasts: int = 0


def windows(files: Sequence[Path]) -> list[Window]:
    """One for each of the newest files that holds a span, newest last. Raises DataError for one not of our making."""
    found = (window(file) for file in files[-MAX_FILES:])
    return [one for one in found if one is not None]


def window(file: Path) -> Window | None:
    """As many of the last whole steps as fit; the last spans, where not one step does. None of a file without spans."""
    events = _read(file)
    if not events.spans:
        return None
    spans = sorted(events.spans)
    ends = [start + duration for start, duration, lane, name in spans if (events.lanes.get(lane), name) == STEP_ENDS]
    cut = spans[max(len(spans) - MAX_SPANS, 0)][0]
    fitting = [end for end in ends if end >= cut]
    if cut > spans[0][0] and len(fitting) > 1:
        cut = fitting[0]
    shown = [span for span in spans if span[0] >= cut][-MAX_SPANS:]
    lanes = sorted({events.lanes.get(lane, str(lane)) for _, _, lane, _ in shown}, key=_place)
    names = list(dict.fromkeys(name for *_, name in shown))
    # The first broadcast of a file hands out the policy that the run starts from.
    first = last_number(file) + events.num_broadcasts - len(ends)
    numbered = [(first + place, (end - cut) / 1e6) for place, end in enumerate(ends) if end >= cut]
    return Window(
        file=file.name,
        epoch_s=cut / 1e6,
        num_spans=events.num_spans,
        lanes=lanes,
        names=names,
        lane=[lanes.index(events.lanes.get(lane, str(lane))) for _, _, lane, _ in shown],
        name=[names.index(name) for *_, name in shown],
        start=[round((start - cut) / 1e6, 5) for start, *_ in shown],
        duration=[round(duration / 1e6, 6) for _, duration, *_ in shown],
        steps=[(number, round(end, 5)) for number, end in numbered],
    )


def _place(lane: str) -> tuple[int, str, int]:
    role, _, number = lane.partition("/")
    return ROLES.index(role) if role in ROLES else len(ROLES), role, int(number) if number.isdigit() else 0


def _read(file: Path) -> _Events:
    events = _Events()
    for event in _lines(file):
        kind, lane = event.get("ph"), int(event.get("tid", 0))
        if kind == "M" and event.get("name") == "thread_name":
            events.lanes[lane] = str(event.get("args", {}).get("name", lane))
        elif kind == "X" and event["name"] != "idle":
            events.spans.append((int(event["ts"]), int(event["dur"]), lane, str(event["name"])))
            events.num_spans += 1
            events.num_broadcasts += (events.lanes.get(lane), event["name"]) == STEP_ENDS
    return events


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """Events of a file with one a line; an empty one for a bracket."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            event = _event(line, f"{file}, line {number}")
            if event is None:
                return
            yield event


def _event(line: bytes, where: str) -> dict[str, Any] | None:
    """None for a last line that is not whole."""
    text = line.strip().removeprefix(b"[").removesuffix(b"]").strip().removesuffix(b",")
    try:
        event: dict[str, Any] = json.loads(text or b"{}")
    except ValueError as error:
        if not line.endswith(b"\n"):
            return None
        raise DataError(f"{where}: not an event a line as runs write it ({error})") from error
    return event
