"""A run watched from outside."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from rlsys.cli import execute
from rlsys.commands import watch as module
from rlsys.commands.watch import end_times
from rlsys.errors import RlsysError
from tests.run_folder import Recipe, write_run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.01)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_ends_follow_from_the_durations_of_later_steps() -> None:
    rows = [{"step": 0}, {"step": 1, "time/step_s": 3.0}, {"step": 2, "time/step_s": 4.0, "time/eval_s": 1.0}]
    assert end_times(rows, 100.0) == [92.0, 95.0, 100.0]
    assert end_times([], 100.0) == []


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rlsys")


def shown(caplog: pytest.LogCaptureFixture) -> str:
    return "".join(f"{message}\n" for message in caplog.messages)


def test_once_shows_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "run", Recipe(num_steps=3))
    os.utime(run / "metrics.jsonl", (time.time() - 90, time.time() - 90))
    execute(["watch", str(run), "--once"])
    printed = shown(caplog).splitlines()
    assert printed[0] == "step 0/5  accuracy 0.400"
    assert printed[2].startswith("step 2/5  reward 0.6")
    # Steps of 4.1 s: two more take 8.2 s.
    assert printed[3].endswith("ETA 8.2 s")
    assert printed[4] == f"{run}: step 3 of 5 ended 1 min 30 s ago"


def test_a_run_is_watched_to_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"train": {"num_steps": 2}}))
    path = tmp_path / "metrics.jsonl"

    def run() -> None:
        for step in range(3):
            time.sleep(0.05)
            append(path, json.dumps({"step": step, "reward/total/mean": 0.5}) + "\n")

    writer = threading.Thread(target=run)
    writer.start()
    execute(["watch", str(tmp_path)])
    writer.join()
    printed = shown(caplog).splitlines()
    assert printed[0] == f"{tmp_path}: no step of 2 has ended yet"
    assert [line.split("  ")[0] for line in printed[1:-1]] == ["step 0/2", "step 1/2", "step 2/2"]
    assert printed[-1] == f"{tmp_path}: all 2 steps are done"


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)


def test_ctrl_c_stops_watching_only(tmp_path: Path, interrupted: None, caplog: pytest.LogCaptureFixture) -> None:
    execute(["watch", str(write_run(tmp_path / "run", Recipe(num_steps=1)))])
    assert shown(caplog).endswith("stopped watching; the run continues\n")


def test_a_long_pause_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path / "run", Recipe(num_steps=4))
    os.utime(run / "metrics.jsonl", (time.time() - 1000, time.time() - 1000))
    turns = iter(range(5))

    def last_step(_: float) -> None:
        if next(turns) == 3:
            append(run / "metrics.jsonl", '{"step": 5}\n')

    monkeypatch.setattr(module.time, "sleep", last_step)
    execute(["watch", str(run)])
    assert shown(caplog).count("no step for 16 min 40 s: is the run still going?") == 1


def test_a_paused_run_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "run", Recipe())
    (run / "paused").write_text("step 3: the service is down\n")
    execute(["watch", str(run), "--once"])
    assert f"the run is paused, until {run}/paused is removed: step 3: the service is down" in caplog.messages
    (run / "paused").write_text("")
    execute(["watch", str(run), "--once"])
    assert f"the run is paused, until {run}/paused is removed" in caplog.messages


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RlsysError, match="no such folder"):
        execute(["watch", str(tmp_path / "nowhere")])
    with pytest.raises(RlsysError, match=r"config\.yaml is missing: give the folder of a run"):
        execute(["watch", str(tmp_path)])
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(RlsysError, match=r"does not hold the number of steps"):
        execute(["watch", str(tmp_path)])
