"""A rank's thread writes what was copied, keeps what fails, and frees each copy once it is written."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlsys.errors import NoRoomError, RlsysError
from rlsys.learner import saving
from rlsys.learner.host_copy import HostCopy
from rlsys.learner.saving import Writing, raise_failures


class Engine:
    """What `Writing` uses of a DeepSpeed engine, with two files of its own."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint_engine = self
        self.folder = folder
        self.weight = torch.zeros(4)

    def _copy_recovery_script(self, folder: str) -> None:
        (Path(folder) / "script.py").write_text("")

    def save(self, state: object, path: str) -> None:
        raise AssertionError("DeepSpeed's own")

    def save_checkpoint(self) -> None:
        for name in ("a.pt", "b.pt"):
            self.checkpoint_engine.save({"weight": self.weight}, str(self.folder / name))
        self._copy_recovery_script(str(self.folder))


def copied(engine: Engine) -> Writing:
    writing = Writing("learner/1", is_late=True)
    with writing.deepspeed(engine):
        engine.save_checkpoint()
    return writing


def test_training_goes_on_before_anything_is_written(tmp_path: Path) -> None:
    engine, go = Engine(tmp_path), threading.Event()
    writing = Writing("learner/1", is_late=True)
    writing.add(tmp_path, lambda: go.wait(60))
    with writing.deepspeed(engine):
        engine.save_checkpoint()
    writing.start()
    writing.wait_for_copy()
    engine.weight += 1  # the next step
    assert writing.found() is None
    assert list(tmp_path.iterdir()) == []
    go.set()
    writing.wait()
    assert writing.found() == []
    assert torch.load(tmp_path / "b.pt")["weight"].tolist() == [0.0] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt", "script.py"]


def test_at_once_nothing_is_copied_and_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(saving, "HostCopy")
    engine, writing = Engine(tmp_path), Writing("learner/1", is_late=False)
    with writing.deepspeed(engine):
        engine.save_checkpoint()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt", "script.py"]
    writing.start()
    writing.wait()
    assert writing.found() == []


def test_a_failure_does_not_keep_the_other_files_from_being_written(tmp_path: Path) -> None:
    (tmp_path / "a.pt").symlink_to("/dev/full")
    writing = copied(Engine(tmp_path))
    writing.start()
    writing.wait()
    found = writing.found()
    assert found is not None
    ((text, is_full),) = found
    assert is_full
    assert text.startswith(f"learner/1: no room on the disk for {tmp_path}/a.pt: ")
    assert torch.load(tmp_path / "b.pt")["weight"].tolist() == [0.0] * 4


def test_a_step_waits_for_the_copy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    class SlowCopy(HostCopy):
        def fill(self) -> None:
            begun.set()
            assert go.wait(60)
            super().fill()

    monkeypatch.setattr(saving, "HostCopy", SlowCopy)
    engine = Engine(tmp_path)
    writing = copied(engine)
    writing.wait_for_copy()  # nothing has begun: as after a failure before it
    writing.start()
    assert begun.wait(60)
    step = threading.Thread(target=writing.wait_for_copy)
    step.start()
    step.join(0.1)
    assert step.is_alive()
    go.set()
    step.join(60)
    assert not step.is_alive()
    writing.wait()
    assert writing.found() == []


def test_without_memory_for_the_copy_training_goes_on_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: HostCopy) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(HostCopy, "fill", fill)
    writing = copied(Engine(tmp_path))
    writing.start()
    writing.wait_for_copy()
    writing.wait()
    assert writing.found() == [("learner/1: the copy of its state: MemoryError: none left", False)]
    assert list(tmp_path.iterdir()) == []


def test_each_copy_is_freed_once_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    counts = []

    class Watched(HostCopy):
        def fill(self) -> None:
            super().fill()
            alive.extend(map(weakref.ref, self._tensors))

    def save(take: Callable[[], object], path: str) -> None:
        state = take()
        gc.collect()
        counts.append(sum(copy() is not None for copy in alive))
        del state

    monkeypatch.setattr(saving, "_save", save)
    monkeypatch.setattr(saving, "HostCopy", Watched)
    writing = copied(Engine(tmp_path))
    writing.start()
    writing.wait()
    gc.collect()
    assert counts == [2, 1]
    assert [ref() for ref in alive] == [None, None]


@pytest.mark.parametrize(("is_full", "error"), [(True, NoRoomError), (False, RlsysError)])
def test_a_full_disk_on_any_rank_is_one_that_can_be_waited_for(is_full: bool, error: type[Exception]) -> None:
    with pytest.raises(error, match="learner/0: a; learner/1: b") as raised:
        raise_failures([("learner/0: a", False), ("learner/1: b", is_full)])
    assert type(raised.value) is error
    raise_failures([])
