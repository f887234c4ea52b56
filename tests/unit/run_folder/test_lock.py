"""A run's claim on its folder: one writer at a time, and no lock that outlives its holder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlsys.errors import ConfigError
from rlsys.run_folder.lock import check_free, is_held, locked, new_folder

HOLD = """
import sys, time
from pathlib import Path
from rlsys.run_folder.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path`."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_by_the_holder_s_name(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    for attempt in (lambda: check_free(tmp_path), lambda: locked(tmp_path).__enter__()):
        with pytest.raises(ConfigError) as caught:
            attempt()
        said = str(caught.value)
        for part in (str(tmp_path), f"process {holder.pid} on {os.uname().nodename}, started 20", "choose another"):
            assert part in said


def test_whether_a_run_goes_on(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    assert not is_held(tmp_path / "other")
    assert is_held(tmp_path)
    holder.kill()
    holder.wait()
    assert not is_held(tmp_path)


def test_a_killed_holder_leaves_no_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    check_free(tmp_path)
    with locked(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} "):
        check_free(tmp_path)
    check_free(tmp_path)


def test_children_of_the_holder_do_not_hold_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = subprocess.Popen(["sleep", "600"], close_fds=False)
    try:
        check_free(tmp_path)
    finally:
        child.kill()
        child.wait()


def test_new_folders_of_one_second_differ(tmp_path: Path) -> None:
    base, made, together = tmp_path / "runs" / "20260102-030405", [], threading.Barrier(8)

    def take() -> None:
        together.wait()
        made.append(new_folder(base).name)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [base.name, *(f"{base.name}-{number}" for number in range(2, 9))]


@pytest.mark.parametrize("use", [check_free, lambda folder: locked(folder).__enter__(), new_folder])
def test_a_folder_that_cannot_be_made(tmp_path: Path, use: object) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run_dir .*file/run cannot be written: .*RLSYS_RUNS"):
        use(tmp_path / "file" / "run")


def test_asking_makes_nothing(tmp_path: Path) -> None:
    check_free(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path):
        assert "without locks: make sure that no other run writes there" in caplog.text
