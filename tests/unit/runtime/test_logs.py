"""Messages reach the terminal and the files of a run."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlsys.runtime.logs import LOG_DIR, MAX_FAILURES, WORKER, FailureLog, log_to_file, log_to_terminal, log_worker

logger = logging.getLogger("rlsys.somewhere")


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    root = logging.getLogger("rlsys")
    before, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


@pytest.mark.parametrize("errors", [False, True])
def test_a_pipe_gets_plain_lines_however_long(errors: bool, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_terminal(errors=errors)
    log_to_terminal(errors=errors)  # once is enough: no line comes twice
    logger.info("step %d %s", 1, "x" * 200)
    logger.warning("a reward failed")
    logger.debug("not shown")
    captured = capsys.readouterr()
    shown, other = (captured.err, captured.out) if errors else (captured.out, captured.err)
    assert shown.splitlines() == [f"step 1 {'x' * 200}", "warning: a reward failed"]
    assert other == ""


def test_a_file_has_time_level_and_place(tmp_path: Path) -> None:
    log_to_file(tmp_path / "logs", "driver")
    logger.info("hello")
    (line,) = (tmp_path / "logs" / "driver.log").read_text().splitlines()
    assert line.endswith("INFO rlsys.somewhere: hello")


def test_a_worker_has_a_file_of_its_own_which_says_where_it_crashed(tmp_path: Path) -> None:
    worker = "import ctypes; from rlsys.runtime.logs import log_worker; log_worker(); ctypes.string_at(0)"
    environment = {**os.environ, LOG_DIR: str(tmp_path), WORKER: "rollout/0"}
    ended = subprocess.run([sys.executable, "-c", worker], env=environment, check=False)
    assert ended.returncode == -signal.SIGSEGV
    log = (tmp_path / "rollout-0.log").read_text()
    assert "rollout/0 started, process" in log
    assert "Segmentation fault" in log
    assert "string_at" in log


def test_a_worker_that_cannot_write_its_file_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(LOG_DIR, str(tmp_path / "file" / "logs"))
    monkeypatch.setenv(WORKER, "rollout/0")
    log_worker()
    assert "rollout/0: no log file in" in caplog.text


def test_outside_a_run_a_worker_logs_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOG_DIR, raising=False)
    log_worker()


def test_of_many_failures_the_first_are_logged_and_the_last_of_these_says_so(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog(logger)
    for number in range(MAX_FAILURES + 5):
        failures.add(f"request {number} failed", ValueError("Traceback\n  in f\n" + "x" * 1000), with_traceback=True)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == MAX_FAILURES
    assert lines[0] == "request 0 failed: ValueError: " + "x" * 300
    assert lines[-1].endswith("further failures like this are not logged")
    assert [bool(record.exc_info) for record in caplog.records] == [True] + [False] * (MAX_FAILURES - 1)
