"""The best evaluation so far, by a metric of which more or less is better."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.config.compose import load_config
from rlsys.errors import ConfigError
from rlsys.guards.progress import Best, Progress
from rlsys.run_folder.checkpoint import RunState


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("eval/accuracy", [0.1, 0.3, 0.2, 0.3], [True, True, False, False]),
        ("-eval/length", [9.0, 8.0, 8.0, 7.0], [True, True, False, True]),
        ("eval/accuracy", [float("nan"), 0.1, None, 0.2], [False, True, False, True]),
    ],
)
def test_what_is_better(metric: str, values: list[float | None], best: list[bool]) -> None:
    so_far, name = Best(metric), metric.removeprefix("-")
    assert [so_far.look(step, {name: value}) for step, value in enumerate(values)] == best


def test_only_more_than_the_threshold_counts_and_what_was_not_measured_is_no_try() -> None:
    best = Best("eval/accuracy", threshold=0.25)
    for step, row in enumerate(({"eval/accuracy": 0.5}, {}, {"eval/accuracy": 0.75}, {"eval/accuracy": None})):
        best.look(step, row)
    assert (best.value, best.since) == (0.5, 1)


def test_a_metric_that_the_evaluations_lack_is_refused_before_training(tmp_path: Path) -> None:
    for option in ("checkpoint.keep_best=eval/acuracy", "train.stop.metric=-eval/acuracy"):
        progress = Progress.from_config(load_config(["eval.every=1", option]), tmp_path, RunState(0, 0))
        with pytest.raises(ConfigError, match="no metric 'eval/acuracy': name one of eval/accuracy, eval/tokens"):
            progress.look(0, {"eval/tokens": 3.0, "eval/accuracy": 0.5})
        progress.look(0, {})


def test_another_metric_than_at_the_checkpoint_begins_anew(tmp_path: Path) -> None:
    config = load_config(["eval.every=1", "train.stop.metric=eval/accuracy", "train.stop.patience=2"])
    progress = Progress.from_config(config, tmp_path, RunState(0, 0))
    for step in range(3):
        progress.look(step, {"eval/accuracy": 0.5, "eval/other": 0.5})
    assert progress.is_over
    state = RunState(2, 0, progress=progress.state())
    assert Progress.from_config(config, tmp_path, state).is_over
    config.train.stop.metric = "eval/other"
    assert not Progress.from_config(config, tmp_path, state).is_over


def test_a_best_checkpoint_that_is_lost_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(["eval.every=1", "checkpoint.keep_best=eval/accuracy"])
    state = RunState(4, 0, progress={"kept": {"metric": "eval/accuracy", "value": 0.9, "step": 3, "since": 0}})
    progress = Progress.from_config(config, tmp_path, state)
    assert "step-000003, is lost: it is not a folder; the next evaluation counts anew" in caplog.text
    progress.look(5, {"eval/accuracy": 0.1})
    assert progress.kept.step == 5
