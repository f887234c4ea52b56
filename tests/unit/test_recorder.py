"""What the recorder reports reaches the log, the display, the run's folder, its report and who watches it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.cli import execute
from rlsys.commands.report.command import collect_rollouts
from rlsys.config.compose import load_config
from rlsys.guards.guards import Guards
from rlsys.metrics.display import Display
from rlsys.metrics.step import StageClock
from rlsys.orchestrator.batch import StepBatch
from rlsys.recorder import Recorder
from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.folder import RunFolder
from rlsys.run_folder.metrics import MetricsWriter
from rlsys.run_folder.rollouts import RolloutWriter
from rlsys.runtime.memory_use import MemoryUse
from rlsys.types import Coefficients, Experience, Update
from tests.unit.records import group, reward, scored, summary, text_of

TEXT = "reward 'exact_match' is 0 for every response"


def record(run_dir: Path, steps: range, display: Display, *, resume_step: int = 0) -> None:
    """Record steps in which every response gets the reward 0."""
    config = load_config(["logging.trackers=[]", "logging.token_groups=0"])
    state = RunState(step=resume_step, prompt_cursor=0)

    async def nothing(_: Any) -> Any:
        return []

    log = MetricsWriter(run_dir, config.logging, resume_step=resume_step)
    orchestrator: Any = SimpleNamespace(metrics=dict)
    recorder = Recorder(
        StageClock(),
        orchestrator,
        Guards.from_config(config, run_dir, state, nothing, text_of),
        MemoryUse({}),
        log=log,
        rollouts=RolloutWriter(run_dir, config.logging, text_of, nothing, nothing),
        display=display,
        timeline=None,
    )
    batch = StepBatch(0, tuple(scored(group(n, [summary(2)] * 2), [reward(0.0)] * 2) for n in range(2)), (0, 1))
    experience = Experience((), (), None, None, 0, Coefficients(0.0, 0.0))
    for step in steps:
        asyncio.run(recorder.record(step, batch, experience, Update({}), {}, {}))
    log.close()


def test_a_signal_that_cannot_teach_is_shown_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("train: {num_steps: 9}")
    caplog.set_level(logging.INFO, "rlsys")
    record(tmp_path, range(1, 6), Display(9, live=False))
    assert [message.split(" for")[0] for message in caplog.messages if TEXT in message] == [
        "step 3: reward 'exact_match' is 0"
    ]
    run = RunFolder.open(tmp_path)
    assert [(step, text.startswith(TEXT)) for step, text in run.warnings] == [(3, True)]
    assert collect_rollouts(run, 10)[1][0].startswith(f"from step 3 on: {TEXT}")
    execute(["report", str(tmp_path)])
    assert f"from step 3 on: {TEXT}" in capsys.readouterr().out
    caplog.clear()
    execute(["watch", str(tmp_path), "--once"])
    assert f"step 3: {TEXT}" in caplog.text


def test_the_display_keeps_it_while_it_holds(tmp_path: Path) -> None:
    shown = []

    class Shown(Display):
        def warn(self, texts: Any) -> None:
            shown.append([text.startswith(TEXT) for text in texts])

    record(tmp_path, range(1, 6), Shown(9, live=False))
    assert shown == [[], [], [True], [True], [True]]


def test_a_resumed_run_drops_the_warnings_of_the_steps_that_it_repeats(tmp_path: Path) -> None:
    record(tmp_path, range(1, 6), Display(9, live=False))
    record(tmp_path, range(3, 5), Display(9, live=False), resume_step=2)
    assert RunFolder.open(tmp_path).warnings == []
    record(tmp_path, range(5, 8), Display(9, live=False), resume_step=4)
    assert [step for step, _ in RunFolder.open(tmp_path).warnings] == [7]
