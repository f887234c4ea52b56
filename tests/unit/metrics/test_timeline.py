"""Spans of workers, and the file that Perfetto opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlsys.metrics.timeline import Timeline
from rlsys.runtime.spans import MAX_KEPT, Spans


def test_spans_are_told_once_and_measured_when_the_block_fails() -> None:
    ticks = iter([1.0, 3.0, 4.0, 4.5])
    spans = Spans(lambda: next(ticks))
    with spans.span("forward"):
        pass
    with pytest.raises(ValueError, match="in the block"), spans.span("backward"):
        raise ValueError("in the block")
    assert spans.take() == [("forward", 1.0, 3.0), ("backward", 4.0, 4.5)]
    assert spans.take() == []


def test_what_nobody_asks_for_does_not_grow() -> None:
    spans = Spans()
    for _ in range(MAX_KEPT + 5):
        spans.add("x", 0.0, 1.0)
    assert len(spans.take()) == MAX_KEPT


def written(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_lanes_and_what_lies_between(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "timeline.json")
    timeline.add("learner/0", [("backward", 2.0, 4.0), ("forward", 1.0, 2.0)])
    timeline.add("rollout/0", [("generate", 0.5, 3.0), ("reload", 1.0, 1.5)])  # one inside the other
    timeline.add("learner/0", [("broadcast", 5.5, 6.0)])
    timeline.close()
    events = written(tmp_path / "timeline.json")
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    shown = [(names[e["tid"]], e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert shown == [
        ("learner/0", "forward", 1_000_000, 1_000_000),
        ("learner/0", "backward", 2_000_000, 2_000_000),
        ("rollout/0", "generate", 500_000, 2_500_000),
        ("rollout/0", "reload", 1_000_000, 500_000),
        ("learner/0", "idle", 4_000_000, 1_500_000),
        ("learner/0", "broadcast", 5_500_000, 500_000),
    ]


def test_a_run_that_was_cut_off_leaves_whole_events(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "timeline.json")
    timeline.add("reward/0", [("score", 1.0, 2.0)])
    text = (tmp_path / "timeline.json").read_text(encoding="utf-8")
    assert [event["name"] for event in json.loads(text + "]")][-1] == "score"
    timeline.close()
