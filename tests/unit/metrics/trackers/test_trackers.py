"""Trackers that fail or hang: the run goes on, and the log says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.schema import Config, LoggingConfig
from rlsys.errors import ConfigError
from rlsys.metrics.trackers import registry, threads
from rlsys.metrics.trackers.choice import choose_trackers
from rlsys.preflight.checks import check_config
from rlsys.run_folder.metrics import MetricsWriter

Logged = pytest.LogCaptureFixture

MINE = '''
import threading
from pathlib import Path

class Notes:
    """Records the calls it gets, and fails or hangs where its options say."""

    def __init__(self, run, *, fail_open=0, fail_steps=(), fail_close=False, hang=""):
        self.path = run.run_dir / "notes"
        self.fail_steps, self.fail_close, self.hang = fail_steps, fail_close, hang
        opens = self.note("open")
        self.maybe_hang("open")
        if opens <= fail_open:
            raise OSError("no server")

    def note(self, what):
        with self.path.open("a") as file:
            file.write(what + "\\n")
        return self.path.read_text().count("open")

    def maybe_hang(self, where):
        if self.hang == where:
            threading.Event().wait()

    def write(self, step, metrics):
        self.note(f"{step} {metrics['a']}")
        self.maybe_hang("write")
        if step in self.fail_steps:
            raise ValueError(f"step {step} is bad")

    def close(self):
        self.note("close")
        self.maybe_hang("close")
        if self.fail_close:
            raise RuntimeError("cannot end")

class Exits:
    def __init__(self, run):
        raise SystemExit(3)
'''


@pytest.fixture(autouse=True)
def logged(caplog: Logged) -> Logged:
    """What trackers log, from their threads as well."""
    caplog.set_level("INFO", logger="rlsys.metrics.trackers")
    return caplog


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A file with trackers of a user's own."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return str(path)


@pytest.fixture
def short_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for those that hang."""
    monkeypatch.setattr(threads, "CLOSE_S", 0.5)


class Run:
    """A metrics writer with trackers, and what its files hold."""

    def __init__(self, folder: Path, *trackers: Any, resume_step: int = 0) -> None:
        self.folder = folder
        self.writer = MetricsWriter(folder, LoggingConfig(trackers=list(trackers)), resume_step=resume_step)

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.writer.write({"step": step, "a": step / 2})

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().split("\n")[:-1] if path.exists() else []


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_tracker_of_ones_own(tmp_path: Path, mine: str, logged: Logged) -> None:
    run = Run(tmp_path / "run", f"{mine}:Notes")
    run.steps(1, 3)
    run.writer.close()
    assert run.notes() == ["open", "1 0.5", "2 1.0", "3 1.5", "close"]
    assert logged.messages == []
    assert run.rows() == [{"step": step, "a": step / 2} for step in (1, 2, 3)]


def test_one_that_never_opens_is_given_up_and_the_others_continue(tmp_path: Path, mine: str, logged: Logged) -> None:
    path = tmp_path / "elsewhere" / "rows.jsonl"
    run = Run(tmp_path / "run", {"name": f"{mine}:Notes", "fail_open": 99}, {"name": "jsonl", "path": str(path)})
    until(lambda: run.notes() == ["open"])
    run.steps(1, 5)
    run.writer.close()
    assert run.notes() == ["open"] * 3
    assert logged.messages == [
        "tracker 'Notes' failed to open, the run continues: OSError: no server",
        "tracker 'Notes' failed 3 times in a row and is given up",
        "tracker 'Notes': 5 steps did not reach it; metrics.jsonl has them all",
    ]
    assert [(row["step"], row["a"]) for row in run.rows()] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0), (5, 2.5)]
    assert path.read_text() == (tmp_path / "run" / "metrics.jsonl").read_text()


def test_one_that_opens_late_gets_what_comes_then(tmp_path: Path, mine: str, logged: Logged) -> None:
    run = Run(tmp_path, {"name": f"{mine}:Notes", "fail_open": 1})
    until(lambda: run.notes() == ["open"])
    run.steps(1, 2)
    run.writer.close()
    assert run.notes() == ["open", "open", "1 0.5", "2 1.0", "close"]
    assert logged.messages == ["tracker 'Notes' failed to open, the run continues: OSError: no server"]


def test_occasional_failures_are_logged_once_and_counted(tmp_path: Path, mine: str, logged: Logged) -> None:
    run = Run(tmp_path, {"name": f"{mine}:Notes", "fail_steps": [2, 3, 7, 8]})
    for step in range(1, 12):
        run.steps(step, step)
        until(lambda step=step: run.notes()[-1:] == [f"{step} {step / 2}"])
    run.writer.close()
    # A row holds the count before it: that of step 6 was written when 4, after 2 and 3, had been written.
    assert [run.rows()[step - 1].get("trackers/Notes/dropped") for step in (1, 2, 6, 11)] == [None, None, 2, 4]
    assert run.notes()[-1] == "close"
    assert logged.messages == [
        "tracker 'Notes' failed to write, the run continues: ValueError: step 2 is bad",
        "tracker 'Notes': 4 steps did not reach it; metrics.jsonl has them all",
    ]


def test_three_failures_in_a_row_are_enough(tmp_path: Path, mine: str, logged: Logged) -> None:
    run = Run(tmp_path, {"name": f"{mine}:Notes", "fail_steps": [2, 3, 4]})
    run.steps(1, 9)
    run.writer.close()
    assert run.notes() == ["open", "1 0.5", "2 1.0", "3 1.5", "4 2.0"]  # neither written to nor closed any more
    assert logged.messages == [
        "tracker 'Notes' failed to write, the run continues: ValueError: step 2 is bad",
        "tracker 'Notes' failed 3 times in a row and is given up",
        "tracker 'Notes': 8 steps did not reach it; metrics.jsonl has them all",
    ]


def test_a_failure_to_close_and_an_exit(tmp_path: Path, mine: str, logged: Logged) -> None:
    run = Run(tmp_path, {"name": f"{mine}:Notes", "fail_close": True}, f"{mine}:Exits")
    run.steps(1, 1)
    run.writer.close()
    assert sorted(logged.messages) == [
        "tracker 'Exits' failed to open, the run continues: SystemExit: 3",
        "tracker 'Exits': 1 steps did not reach it; metrics.jsonl has them all",
        "tracker 'Notes' failed to close, the run continues: RuntimeError: cannot end",
    ]
    assert len(run.rows()) == 1


@pytest.mark.usefixtures("short_closing")
def test_one_that_hangs_while_it_writes_slows_nothing(tmp_path: Path, mine: str, logged: Logged) -> None:
    path = tmp_path / "rows.jsonl"
    run = Run(tmp_path, {"name": f"{mine}:Notes", "hang": "write"}, {"name": "jsonl", "path": str(path)})
    until(path.exists)
    run.steps(1, 1)
    until(lambda: run.notes()[-1:] == ["1 0.5"])
    started = time.monotonic()
    for step in range(2, 151):
        run.steps(step, step)
        until(lambda step=step: len(path.read_text().splitlines()) == step)  # the other tracker keeps up
    assert time.monotonic() - started < 5.0
    # Steps 2 to 101 wait, 102 to 150 are dropped; a row holds the count before it.
    assert run.rows()[101].get("trackers/Notes/dropped") is None
    assert run.rows()[102]["trackers/Notes/dropped"] == 1
    assert run.rows()[149]["trackers/Notes/dropped"] == 48
    started = time.monotonic()
    run.writer.close()
    assert time.monotonic() - started < 5.0
    assert logged.messages == [
        "tracker 'Notes' is too slow: 100 steps wait, further ones are dropped",
        "tracker 'Notes' did not close within 0.5 s after the end of the run and is abandoned",
        "tracker 'Notes': 149 steps did not reach it; metrics.jsonl has them all",
    ]
    assert len(run.rows()) == 150


@pytest.mark.parametrize(("where", "missing"), [("open", 2), ("close", 0)])
@pytest.mark.usefixtures("short_closing")
def test_one_that_hangs_at_the_ends(tmp_path: Path, mine: str, where: str, missing: int, logged: Logged) -> None:
    run = Run(tmp_path, {"name": f"{mine}:Notes", "hang": where})
    run.steps(1, 2)
    started = time.monotonic()
    run.writer.close()
    assert 0.4 < time.monotonic() - started < 5.0
    lost = [f"tracker 'Notes': {missing} steps did not reach it; metrics.jsonl has them all"] if missing else []
    assert logged.messages == [
        "tracker 'Notes' did not close within 0.5 s after the end of the run and is abandoned",
        *lost,
    ]


def test_several_that_hang_share_one_deadline(
    tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch, logged: Logged
) -> None:
    monkeypatch.setattr(threads, "CLOSE_S", 1.0)
    other = tmp_path / "other.py"
    other.write_text(MINE.replace("class Notes", "class Other"))
    hanging = [{"name": f"{mine}:Notes", "hang": "close"}, {"name": f"{other}:Other", "hang": "open"}]
    run = Run(tmp_path / "run", *hanging)
    started = time.monotonic()
    run.writer.close()
    assert time.monotonic() - started < 1.9  # one after the other would take 2
    assert len(logged.messages) == 2


def test_a_process_ends_though_a_tracker_hangs(tmp_path: Path, mine: str) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from rlsys.config.schema import LoggingConfig\n"
        "from rlsys.run_folder.metrics import MetricsWriter\n"
        "from rlsys.metrics.trackers import threads\n"
        "threads.CLOSE_S = 0.1\n"
        "writer = MetricsWriter(Path(sys.argv[1]), LoggingConfig(trackers=[{'name': sys.argv[2], 'hang': 'write'}]))\n"
        "writer.write({'step': 1, 'a': 1.0}); writer.close(); print('ended')\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), f"{mine}:Notes"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "ended"
    assert "is abandoned" in result.stderr


def test_the_built_in_trackers() -> None:
    assert registry.names() == ["jsonl", "mlflow", "tensorboard", "trackio", "wandb"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["tensorbord"], "unknown tracker 'tensorbord': did you mean 'tensorboard'?"),
        ([{"name": "jsonl", "pth": "x"}], "tracker 'jsonl' has no option 'pth'; accepted options: path"),
        (["jsonl"], "tracker 'jsonl' needs the option 'path'"),
        ([{"path": "x"}], "a tracker needs a name"),
        ([3], "3 must be a name or {name: ..., option: value ...}"),
        ([{"name": "wandb", "mode": "ofline"}], "option 'mode' is 'ofline', known: auto, online, offline."),
        (["tensorboard", "tensorboard"], "'tensorboard' is named twice"),
        (["no/such.py:Tracker"], "tracker 'no/such.py:Tracker': cannot import 'no/such.py'"),
    ],
)
def test_what_is_refused_before_anything_starts(entries: list[Any], said: str) -> None:
    config = Config()
    config.logging.trackers = entries
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert str(caught.value).startswith("logging.trackers: ")
    assert said in str(caught.value)
    check_config(config, training=False)  # an evaluation tracks nothing


def test_a_library_that_is_missing_or_broken_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"tracker 'wandb' cannot import wandb .*: pip install 'rlsys\[wandb\]'"):
        choose_trackers(["wandb"])
    (tmp_path / "trackio.py").write_text("raise RuntimeError('half installed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(ConfigError, match=r"cannot import trackio \(RuntimeError: half installed\)"):
        choose_trackers(["trackio"])
