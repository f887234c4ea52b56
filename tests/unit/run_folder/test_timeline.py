"""The timeline file, which Perfetto opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlsys.run_folder.timeline import TimelineWriter


def written(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_lanes_and_what_lies_between(tmp_path: Path) -> None:
    timeline = TimelineWriter(tmp_path / "timeline.json")
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
    timeline = TimelineWriter(tmp_path / "timeline.json")
    timeline.add("scoring/0", [("score", 1.0, 2.0)])
    text = (tmp_path / "timeline.json").read_text(encoding="utf-8")
    assert [event["name"] for event in json.loads(text + "]")][-1] == "score"
    timeline.close()
