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

from rlsys.runtime.logs import (
    LOG_DIR,
    MAX_FAILURES,
    SHOW_OUTPUT,
    WORKER,
    FailureLog,
    end_of_log,
    end_of_own_log,
    log_to_file,
    log_to_terminal,
    log_worker,
)

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


def test_what_a_worker_and_its_children_print_is_kept(tmp_path: Path) -> None:
    worker = "import os, sys; from rlsys.runtime.logs import end_of_own_log, log_worker; log_worker()\n"
    worker += "print('from print'); os.system('echo from a child >&2'); print('x' * 9000 + 'the last')\n"
    worker += "sys.stdout.flush(); os.environ['RLSYS_LOG_DIR'] and open(sys.argv[1], 'w').write(end_of_own_log())"
    environment = {**os.environ, LOG_DIR: str(tmp_path), WORKER: "scoring/0"}
    for shown in ({}, {SHOW_OUTPUT: "1"}):
        command = [sys.executable, "-c", worker, str(tmp_path / "end")]
        ended = subprocess.run(command, env=environment | shown, capture_output=True, text=True, check=True)
        log = (tmp_path / "scoring-0.log").read_text()
        kept, other = (ended.stdout + ended.stderr, log) if shown else (log, ended.stdout + ended.stderr)
        assert [text for text in ("from print", "from a child", "the last") if text not in kept] == []
        assert "from print" not in other
        end = (tmp_path / "end").read_text()
        assert end.startswith(f"\nThe end of {tmp_path}/scoring-0.log:\n  ")
        assert len(end) < 2000
        (tmp_path / "scoring-0.log").unlink()


def test_a_process_without_a_log_has_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOG_DIR, raising=False)
    assert (end_of_own_log(), end_of_log(tmp_path, "rollout/0"), end_of_log(None, "rollout/0")) == ("", "", "")


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
    FailureLog(logger).add("a call", ValueError("it died\nThe end of scoring-0.log:\n  printed"))
    assert caplog.records.pop().getMessage() == "a call: ValueError: it died"
    assert lines[-1].endswith("further failures like this are not logged")
    assert [bool(record.exc_info) for record in caplog.records] == [True] + [False] * (MAX_FAILURES - 1)


def test_a_terminal_that_is_gone_keeps_no_message_from_the_file(tmp_path: Path) -> None:
    """As when a run ends in order because its terminal was closed."""
    script = (
        "import logging, os, pathlib, sys\nfrom rlsys.runtime.logs import log_to_file, log_to_terminal\n"
        "log_to_terminal()\nlog_to_file(pathlib.Path(sys.argv[1]), 'driver')\n"
        "os.close(1)\nos.open('/dev/full', os.O_WRONLY)\nlogging.getLogger('rlsys').warning('saved')\nos._exit(7)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 7, result.stderr
    assert "WARNING rlsys: saved" in (tmp_path / "driver.log").read_text()
