"""Ctrl-C at any moment keeps what was trained, and then ends every process of the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from rlsys.run_folder.checkpoint import checkpoints
from tests.integration.runs import SMALL

MARK = "RLSYS_TEST_MARK"
DEADLINE_S = 60.0  # on a machine of its own a run needs less than ten; a busy one is slower


def marked(mark: str) -> list[str]:
    """Command lines of every live process that inherited the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
        except (psutil.Error, OSError):
            continue
    return found


def start(tmp_path: Path, mark: str, *more: str) -> subprocess.Popen[str]:
    overrides = [*SMALL, "train.num_steps=1000", f"model.cache_dir={tmp_path}/m", f"run_dir={tmp_path}/run", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "rlsys.cli", "train", *overrides],
        cwd=tmp_path,
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Whoever is started in the background of a shell or by `nohup` ignores these, and so would the run.
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
    )


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"'{text}' never came; output: {''.join(seen)}")


@pytest.mark.parametrize(
    ("text", "delay_s", "how"),
    [
        pytest.param("starting Ray", 2.0, signal.SIGINT, marks=pytest.mark.long),
        pytest.param("starting Ray", 14.0, signal.SIGINT, marks=pytest.mark.long),
        ("step 2/", 0.1, signal.SIGINT),
        pytest.param("step 2/", 0.1, signal.SIGHUP, marks=pytest.mark.long),
        pytest.param("step 2/", 0.1, signal.SIGKILL, marks=pytest.mark.long),
    ],
    ids=["while Ray starts", "while workers start", "while training", "terminal closed", "killed while training"],
)
def test_nothing_is_left_running(tmp_path: Path, text: str, delay_s: float, how: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    process = start(tmp_path, mark)
    try:
        read_until(process, text)
        time.sleep(delay_s)
        assert len(marked(mark)) > 1, "the run had not started anything yet"
        # What a terminal does: the signal goes to the whole foreground group.
        os.killpg(process.pid, how)
        is_saved = how is not signal.SIGKILL and text.startswith("step")
        if is_saved:  # first, in whatever time this machine takes
            read_until(process, f"saved {tmp_path}/run/checkpoints/step-")
        sent = time.monotonic()
        while (left := marked(mark)) and time.monotonic() - sent < DEADLINE_S:
            time.sleep(0.1)
        assert not left, f"alive {DEADLINE_S:g} s after {how.name}: {left}"
        if is_saved:
            assert checkpoints(tmp_path / "run"), "the steps that were done are lost"
            started = (tmp_path / "run" / "logs" / "driver.log").read_text()
            assert "ready: learner/0, reference/0: shared_prompt in float32 on CPU" in started
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("text", "delay_s", "more"),
    [
        ("warming it up", 1.0, ("model.build.warmup.max_steps=100000",)),
        pytest.param("step 2/", 0.1, (), marks=pytest.mark.long),
    ],
    ids=["while warming up", "while training"],
)
def test_a_polite_signal_to_the_driver_alone_ends_the_run_in_order(
    tmp_path: Path, text: str, delay_s: float, more: tuple[str, ...]
) -> None:
    """What `ray job stop`, Slurm and `docker stop` send."""
    mark = uuid.uuid4().hex
    process = start(tmp_path, mark, *more)
    try:
        read_until(process, text)
        time.sleep(delay_s)
        process.terminate()
        if text.startswith("step"):
            read_until(process, f"saved {tmp_path}/run/checkpoints/step-")
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 130, output
        assert "every process of this run has ended" in output
        assert not marked(mark)
    finally:
        process.kill()
        process.wait()
