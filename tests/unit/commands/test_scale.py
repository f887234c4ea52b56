"""`rlsys scale`: what it refuses, and what it shows of a run that answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlsys.cli import execute
from rlsys.commands import scale as module
from rlsys.config.compose import load_config
from rlsys.errors import ConfigError, RlsysError
from rlsys.run_folder.folder import RunFolder
from rlsys.run_folder.lock import locked
from rlsys.run_folder.scale_requests import DONE, REFUSED, TAKEN, ScaleRequests, answer


class Tokenizer:
    def save_pretrained(self, _: Path) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "POLL_S", 0.01)
    short = ["cluster.startup_deadline_s=0.2", "rollout.deadline_s=0.2"]
    return RunFolder.create(tmp_path / "run", load_config(short), Tokenizer()).path


@contextmanager
def a_run(folder: Path, *answers: tuple[str, str], last: Callable[[Path], None] = lambda _: None) -> Iterator[None]:
    """A run that takes the next request and answers it; `last` is called before it lets go of the folder."""

    def serve() -> None:
        with locked(folder):
            is_held.set()
            while (file := ScaleRequests(folder).oldest()) is None:
                time.sleep(0.005)
            for state, text in answers:
                answer(file, state, text)
                time.sleep(0.05)
            last(file)

    is_held = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    assert is_held.wait(10.0)
    yield
    thread.join()


def test_what_is_going_on_is_shown_and_the_result_last(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with a_run(folder, (TAKEN, "rollout/1 starts"), (DONE, "the run has rollout=2")):
        execute(["scale", str(folder), "rollout=2"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["rollout/1 starts", "the run has rollout=2"]
    assert list((folder / "scale").iterdir()) == []


def test_a_refusal_is_an_error(folder: Path) -> None:
    with a_run(folder, (REFUSED, "no room")), pytest.raises(RlsysError, match=r"run: no room$"):
        execute(["scale", str(folder), "rollout=2"])


def test_a_run_that_ends_or_starts_again_meanwhile(folder: Path) -> None:
    with a_run(folder, (TAKEN, "starting")), pytest.raises(RlsysError, match="has ended or was started again"):
        execute(["scale", str(folder), "rollout=2"])

    def start_again(file: Path) -> None:
        ScaleRequests(folder).clear()
        time.sleep(0.1)

    with a_run(folder, last=start_again), pytest.raises(RlsysError, match="has ended or was started again"):
        execute(["scale", str(folder), "rollout=2"])


def test_a_run_that_does_not_answer(folder: Path) -> None:
    with locked(folder), pytest.raises(RlsysError, match=r"for 0\.6 s the run does not answer"):
        execute(["scale", str(folder), "rollout=2"])
    assert list((folder / "scale").iterdir()) == []  # withdrawn
    late = a_run(folder, (TAKEN, "rollout/1 starts"), last=lambda _: time.sleep(1.2))
    with late, pytest.raises(RlsysError, match="has been at this for too long: rollout/1 starts"):
        execute(["scale", str(folder), "rollout=2"])


def test_nothing_to_ask(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RlsysError, match=r"no run goes on in this folder. Start it with rollout.num_workers=3"):
        execute(["scale", str(folder), "rollout=3"])
    with locked(folder):
        pass
    with pytest.raises(RlsysError, match="no run goes on in this folder"):  # it has ended
        execute(["scale", str(folder), "rollout=3"])
    with pytest.raises(RlsysError, match="no such folder"):
        execute(["scale", str(tmp_path / "other"), "rollout=3"])
    assert not (folder / "scale").exists()


@pytest.mark.parametrize("size", ["rollout=0", "rollout=-1", "rollout=", "rollout", "rollout=two"])
def test_no_number(folder: Path, size: str) -> None:
    with pytest.raises(ConfigError, match="give the number of engines, at least 1, as rollout=4"):
        execute(["scale", str(folder), size])


@pytest.mark.parametrize("size", ["learner=2", "rollout.tensor_parallel_size=2", "4"])
def test_nothing_else_is_scaled(folder: Path, size: str) -> None:
    with pytest.raises(ConfigError, match="only rollout=N can change while a run goes on"):
        execute(["scale", str(folder), size])
