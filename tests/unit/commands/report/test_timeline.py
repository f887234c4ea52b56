"""The part of a timeline that a report shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlsys.commands.report.timeline import MAX_SPANS, window, windows
from rlsys.errors import DataError
from rlsys.run_folder.timeline import TimelineWriter
from tests.run_folder import EPOCH_S, timeline


def test_all_of_a_short_one(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    path.write_text(timeline(2))
    shown = window(path)
    assert shown is not None
    assert shown.epoch_s == EPOCH_S
    assert shown.num_spans == 9  # a broadcast, and four spans a step; what is idle is not shown
    assert shown.lanes == ["rollout/0", "learner/0"]
    spans = [
        (shown.lanes[lane], shown.names[name], start, duration)
        for lane, name, start, duration in zip(shown.lane, shown.name, shown.start, shown.duration, strict=True)
    ]
    assert spans[:5] == [
        ("learner/0", "broadcast", 0.0, 0.1),
        ("rollout/0", "generate", 0.1, 2.0),
        ("learner/0", "forward", 2.1, 0.8),
        ("learner/0", "backward", 2.9, 0.8),
        ("learner/0", "broadcast", 3.9, 0.2),
    ]
    assert shown.steps == [(0, 0.1), (1, 4.1), (2, 8.1)]


def test_of_a_long_one_the_last_whole_steps(tmp_path: Path) -> None:
    path = tmp_path / "timeline-from-40.json"
    num_steps = MAX_SPANS // 4 + 100
    path.write_text(timeline(num_steps, first_step=41))
    shown = window(path)
    assert shown is not None
    assert shown.num_spans == 1 + 4 * num_steps
    assert len(shown.start) <= MAX_SPANS
    assert len(shown.start) > MAX_SPANS - 8
    assert shown.start[0] == 0.0
    first, last = shown.steps[0], shown.steps[-1]
    assert first[1] == 0.0  # it begins where a step ends
    assert last[0] == 40 + num_steps
    assert last[1] == pytest.approx(4.0 * (last[0] - first[0]))
    assert len(shown.steps) == 1 + (last[0] - first[0])
    assert [shown.names[name] for name in shown.name[:4]] == ["generate", "forward", "backward", "broadcast"]


def test_a_step_too_large_to_show_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    log = TimelineWriter(path)
    log.add("scoring/0", [("score", float(second), second + 0.5) for second in range(MAX_SPANS + 10)])
    log.close()
    shown = window(path)
    assert shown is not None
    assert len(shown.start) == MAX_SPANS
    assert shown.epoch_s == 10.0
    assert shown.steps == []


def test_what_a_run_wrote_is_read_though_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    log = TimelineWriter(path)
    log.add("rollout/10", [("generate", 1.0, 2.0)])
    log.add("rollout/9", [("generate", 1.5, 2.0)])
    log.add("learner/0", [("forward", 1.0, 2.0), ("matmul", 1.25, 1.5)])
    text = path.read_text()
    path.write_text(text + ",\n" + text.splitlines()[1][:40])
    shown = window(path)
    assert shown is not None
    assert shown.lanes == ["rollout/9", "rollout/10", "learner/0"]
    assert sorted(shown.names) == ["forward", "generate", "matmul"]


def test_files_without_spans_and_old_ones_are_passed_over(tmp_path: Path) -> None:
    files = [tmp_path / f"timeline-from-{step}.json" for step in range(6)]
    for step, file in enumerate(files):
        file.write_text("[\n" if step == 4 else timeline(1, first_step=step + 1))
    assert [shown.file for shown in windows(files)] == [f"timeline-from-{step}.json" for step in (2, 3, 5)]


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    path.write_text(json.dumps([{"ph": "X"}, {"ph": "X"}]) + "\n")
    with pytest.raises(DataError, match=r"timeline\.json, line 1: not one event per line"):
        windows([path])
