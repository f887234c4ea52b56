"""The last steps of a run's timelines, in columns small enough for a page."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlsys.run_folder.checkpoint import step_of
from rlsys.run_folder.timeline import timeline_events

MAX_SPANS = 3000  # spans shown per file: a browser draws them in a fraction of a second
MAX_FILES = 4  # files shown per run, which has one for each time it was started or resumed
MAX_HELD = 20 * MAX_SPANS  # spans kept while a file is read: the last ones, from which the window is cut
# Lanes from top to bottom, in the order that a step's data takes.
ROLES = ("rollout", "scoring", "reference", "critic", "learner")
# The lane and name of the span that ends a step.
STEP_ENDS = ("learner/0", "broadcast")


@dataclass(frozen=True)
class Window:
    """The part of one file that is shown: columns with one entry per span. Times are in seconds from `epoch_s`."""

    file: str
    epoch_s: float
    num_spans: int  # in the whole file
    lanes: list[str]
    names: list[str]
    lane: list[int]
    name: list[int]
    start: list[float]
    duration: list[float]
    steps: list[tuple[int, float]]  # number and end of each step in the window


@dataclass
class _Events:
    """The last spans of a file, as (start, duration, lane, name), in microseconds and with numbers for lanes."""

    spans: deque[tuple[int, int, int, str]] = field(default_factory=lambda: deque(maxlen=MAX_HELD))
    lanes: dict[int, str] = field(default_factory=dict)
    num_spans: int = 0
    num_broadcasts: int = 0


def windows(files: Sequence[Path]) -> list[Window]:
    """Return a window of each of the newest files that holds a span, newest last.

    Raises:
        DataError: a file was not written by a run.
    """
    found = (window(file) for file in files[-MAX_FILES:])
    return [one for one in found if one is not None]


def window(file: Path) -> Window | None:
    """Return as many of a file's last whole steps as fit, or its last spans if not even one step does.

    Returns None for a file without spans.
    """
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
    lanes = sorted({events.lanes.get(lane, str(lane)) for _, _, lane, _ in shown}, key=_lane_order)
    names = list(dict.fromkeys(name for *_, name in shown))
    # The first broadcast of a file sends the policy that the run starts from: step 0, or the step it was resumed at.
    first = step_of(file) + events.num_broadcasts - len(ends)
    numbered = [(first + index, (end - cut) / 1e6) for index, end in enumerate(ends) if end >= cut]
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


def _lane_order(lane: str) -> tuple[int, str, int]:
    role, _, number = lane.partition("/")
    return ROLES.index(role) if role in ROLES else len(ROLES), role, int(number) if number.isdigit() else 0


def _read(file: Path) -> _Events:
    events = _Events()
    for event in timeline_events(file):
        kind, lane = event.get("ph"), int(event.get("tid", 0))
        if kind == "M" and event.get("name") == "thread_name":
            events.lanes[lane] = str(event.get("args", {}).get("name", lane))
        elif kind == "X" and event["name"] != "idle":
            events.spans.append((int(event["ts"]), int(event["dur"]), lane, str(event["name"])))
            events.num_spans += 1
            events.num_broadcasts += (events.lanes.get(lane), event["name"]) == STEP_ENDS
    return events
