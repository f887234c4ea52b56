"""The files of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rlsys.config.schema import LoggingConfig
from rlsys.run_folder.metrics import MetricsWriter, set_aside, tracker_id


def open_log(run_dir: Path, *, resume_step: int = 0, every: int = 1, tensorboard: bool = False) -> MetricsWriter:
    return MetricsWriter(
        run_dir,
        LoggingConfig(trackers=["tensorboard"] if tensorboard else [], rollouts_every=every),
        resume_step=resume_step,
    )


def lines(path: Path) -> list[Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_one_line_per_step_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    log = open_log(tmp_path / "new" / "run")
    log.write({"step": 1, "a": 0.5, "b": None, "c": math.nan, "d": math.inf})
    assert lines(tmp_path / "new" / "run" / "metrics.jsonl") == [{"step": 1, "a": 0.5, "b": None, "c": None, "d": None}]
    log.write({"step": 2, "a": 1})
    assert len(lines(tmp_path / "new" / "run" / "metrics.jsonl")) == 2  # on disk though the log is still open
    log.close()


def test_a_resumed_run_drops_the_steps_that_it_runs_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    cut_off = '{"step": 4, "a": 0.'
    path.write_text("".join(f'{{"step": {step}, "a": {step}.5}}\n' for step in (0, 1, 2, 3)) + cut_off)
    log = open_log(tmp_path, resume_step=2)
    log.write({"step": 3, "a": -1})
    log.close()
    assert [(row["step"], row["a"]) for row in lines(path)] == [(0, 0.5), (1, 1.5), (2, 2.5), (3, -1)]


def test_a_resumed_run_drops_the_rollouts_of_these_steps(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    for step in (1, 2, 3, 1000000):
        (tmp_path / "rollouts" / f"step-{step:06d}.jsonl").write_text("{}\n")
    open_log(tmp_path, resume_step=2).close()
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == ["step-000001.jsonl", "step-000002.jsonl"]


def test_what_an_earlier_start_wrote_is_kept_aside(tmp_path: Path) -> None:
    assert set_aside(tmp_path) is None
    for start in (1, 2):
        (tmp_path / "config.yaml").write_text("seed: 0\n")
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": {start}}}\n')
        (tmp_path / "rollouts").mkdir()
        assert set_aside(tmp_path) == tmp_path / f"earlier-{start}"
    assert [row["step"] for row in lines(tmp_path / "earlier-1" / "metrics.jsonl")] == [1]
    assert [row["step"] for row in lines(tmp_path / "earlier-2" / "metrics.jsonl")] == [2]
    assert (tmp_path / "earlier-2" / "rollouts").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "earlier-1", "earlier-2"]


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = open_log(tmp_path, tensorboard=True)
    log.write({"step": 1, "reward/total/mean": 0.5, "policy/kl_ref": None, "bad": math.nan})
    log.write({"step": 2, "reward/total/mean": 0.75})
    log.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/total/mean")] == [(1, 0.5), (2, 0.75)]
    assert set(events.Tags()["scalars"]) == {"step", "reward/total/mean"}


def test_a_run_keeps_its_id_until_it_starts_over(tmp_path: Path) -> None:
    first = tracker_id(tmp_path)
    assert len(first) == 12
    assert first.isalnum()
    assert tracker_id(tmp_path) == first
    set_aside(tmp_path)
    assert tracker_id(tmp_path) != first
