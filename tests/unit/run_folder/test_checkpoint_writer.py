"""Checkpoints are complete or absent, the newest stay, and nothing that is not ours is touched."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlsys.errors import NoRoomError
from rlsys.run_folder.checkpoint import RunState, checkpoint_path, checkpoints, load_state, newest
from rlsys.run_folder.checkpoint_writer import save, set_aside_after
from tests.unit.run_folder.written import saved, write


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    state = RunState(step=5, prompt_cursor=40, progress={"kept": {"step": 3}})
    folder = asyncio.run(save(tmp_path, state, write, keep=2))
    assert folder == tmp_path / "checkpoints" / "step-000005"
    assert newest(tmp_path) == folder
    assert load_state(folder) == state
    assert {path.name for path in folder.iterdir()} == {"learner", "manifest.json", "policy", "state.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {"learner/rank_0.pt", "policy/model.safetensors", "state.json"}
    assert manifest["policy/model.safetensors"]["size"] == 500


def test_everything_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path).as_posix()))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append(("rename", path.relative_to(tmp_path).as_posix()))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    saved(tmp_path, 5)
    partial = "checkpoints/.step-000005.partial"
    named = events.index(("rename", partial))
    files = ("", "/learner", "/learner/rank_0.pt", "/policy", "/policy/model.safetensors", "/state.json")
    assert {("sync", partial + name) for name in files} <= set(events[:named])
    assert ("sync", "checkpoints") in events[named:]
    assert ("sync", ".") in events  # the name of `checkpoints` itself


@pytest.mark.parametrize(
    ("keep", "left"),
    [(2, ["step-000003", "step-000004"]), (1, ["step-000004"]), (0, ["step-000004"])],  # the newest always stays
)
def test_the_newest_are_kept(tmp_path: Path, keep: int, left: list[str]) -> None:
    assert saved(tmp_path, 1, 2, 3, 4, keep=keep) == left


def test_so_are_those_that_are_named(tmp_path: Path) -> None:
    assert saved(tmp_path, 1, 2, 3, 4, keep=1, also=[2]) == ["step-000002", "step-000004"]
    assert saved(tmp_path, 5, keep=2, also=[5]) == ["step-000004", "step-000005"]


FOREIGN = ("step-000002-best", "step-000002.tar", "step-2", "last", ".step-000002.partial.mine", "step-000001-aside")


def test_foreign_entries_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    for name in FOREIGN:
        (tmp_path / "checkpoints" / name / "policy").mkdir(parents=True)
        shutil.copy(__file__, tmp_path / "checkpoints" / name / "state.json")
    (tmp_path / "checkpoints" / "step-000009").write_text("a file")
    assert set(saved(tmp_path, 1, 2, 3, keep=2)) == {*FOREIGN, "step-000002", "step-000003", "step-000009"}
    assert newest(tmp_path) == checkpoint_path(tmp_path, 3)


def test_later_ones_than_the_new_one_do_not_push_it_out(tmp_path: Path) -> None:
    saved(tmp_path, 20, 30)
    assert saved(tmp_path, 1, 2, 3, keep=2) == ["step-000002", "step-000003", "step-000020", "step-000030"]


def test_damaged_ones_are_not_counted_among_those_that_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    (checkpoint_path(tmp_path, 3) / "policy" / "model.safetensors").write_bytes(b"")
    assert saved(tmp_path, 4, keep=2) == ["step-000002", "step-000003", "step-000004"]
    assert saved(tmp_path, 5, keep=2) == ["step-000004", "step-000005"]


def test_those_of_later_steps_than_the_start_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1, 2, 3)
    set_aside_after(tmp_path, 2)
    saved(tmp_path, 3)
    set_aside_after(tmp_path, 2)
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"step-000001", "step-000002", "step-000003-aside", "step-000003-aside-2"}
    assert "step-000003 is kept as step-000003-aside" in caplog.text


def test_one_that_could_not_be_set_aside_is_replaced(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    (checkpoint_path(tmp_path, 3) / "left").write_text("cut off")
    assert saved(tmp_path, 3) == ["step-000003"]
    assert not (checkpoint_path(tmp_path, 3) / "left").exists()


def test_a_file_that_is_still_open_elsewhere_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", f"{path}/.nfs0001")

    saved(tmp_path, 1)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", busy)
        assert saved(tmp_path, 2, keep=1) == [".step-000001.removed", "step-000002"]
    assert "is not removed yet" in caplog.text
    assert saved(tmp_path, 3, keep=1) == ["step-000003"]


def test_one_that_was_cut_off_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    async def die(folder: str) -> None:
        await write(folder)
        raise KeyboardInterrupt

    saved(tmp_path, 1, 2)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(save(tmp_path, RunState(3, 24), die, keep=1))
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000001", "step-000002"]  # nothing was removed
    assert saved(tmp_path, 4) == ["step-000001", "step-000002", "step-000004"]


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from rlsys.run_folder import checkpoint_writer
from tests.unit.run_folder.written import saved

run_dir, moment = Path(sys.argv[1]), int(sys.argv[2])
saved(run_dir, 1, 2)
fsync, num = os.fsync, 0

def counted(descriptor):
    global num
    num += 1
    if num == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = counted
saved(run_dir, 3, keep=2)
print("not killed")
"""


@pytest.mark.parametrize("moment", [1, 4, 9, 11])
def test_a_kill_at_any_moment_leaves_the_newest_whole_one(tmp_path: Path, moment: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(moment)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    found = newest(tmp_path)
    assert found in (checkpoint_path(tmp_path, 2), checkpoint_path(tmp_path, 3))
    assert saved(tmp_path, 4, keep=1) == ["step-000004"]


def test_a_full_disk_leaves_the_last_one_and_nothing_of_the_new_one(tmp_path: Path) -> None:
    """The write that fails is a real one: every write to /dev/full does."""

    async def fills(folder: str) -> None:
        await write(folder)
        (Path(folder) / ".state.json.partial").symlink_to("/dev/full")

    saved(tmp_path, 1)
    with pytest.raises(NoRoomError, match="No space left on device"):
        asyncio.run(save(tmp_path, RunState(2, 16), fills, keep=1))
    assert saved(tmp_path) == ["step-000001"]
