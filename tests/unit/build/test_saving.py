"""When a run saves: by steps, by time, at a new best and at its end; and what it does on a full disk."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlsys.errors import NoRoomError, RlsysError
from rlsys.learner.rank import Rank
from rlsys.run_folder.checkpoint import checkpoints, load_state
from tests.unit.build.scene import STEPS, Scene, fails

KEEP = "checkpoint.keep=9"
# Seconds: a step takes 6, the copy for a checkpoint 1, its files 0.5, and the start 2.


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], [5]),
        (["checkpoint.every=2"], [2, 4, 5]),
        (["checkpoint.every=2", "checkpoint.last=false"], [2, 4]),
        (["checkpoint.last=false"], []),
        (["checkpoint.every=5"], [5]),
        (["checkpoint.every_s=900"], [5]),
        (["checkpoint.every_s=12"], [2, 4, 5]),  # after 14 s, and 12 s after that one was copied
        (["checkpoint.every_s=12", "checkpoint.every=3", "checkpoint.last=false"], [2, 3, 5]),
        (["checkpoint.every_s=0.1", "checkpoint.last=false"], [1, 2, 3, 4, 5]),
    ],
)
def test_it_saves_every_so_many_steps_or_seconds_and_at_the_end(
    tmp_path: Path, overrides: list[str], steps: list[int]
) -> None:
    scene = Scene(tmp_path, KEEP, *overrides)
    scene.play()
    assert scene.saved == steps


@pytest.mark.parametrize(
    ("overrides", "write_s", "steps"),
    [([], 0.5, [2, 3, 4, 5]), ([], 8.0, [2, 4, 5]), (["checkpoint.last=false"], 0.5, [])],
)
def test_steps_are_saved_while_a_node_with_learner_ranks_is_about_to_end(
    tmp_path: Path, overrides: list[str], write_s: float, steps: list[int]
) -> None:
    """Each, but for those that end while another is written; and none where no checkpoints are wanted."""
    scene = Scene(tmp_path, KEEP, *overrides)
    scene.write_s, scene.ending_after = write_s, range(2, 5)
    scene.play()
    assert scene.saved == steps


def test_a_second_place_that_fails_is_said_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(tmp_path, "checkpoint.every=2", "checkpoint.keep=2")
    scene.at("mirror", 4, fails(ConnectionError("the bucket is gone")))
    scene.play()
    assert scene.saved == [4, 5]
    assert scene.mirrored == ["step-000004", "step-000005"]
    assert "step-000004 is not in checkpoint.mirror: ConnectionError: the bucket is gone" in caplog.text


def test_the_best_by_a_metric_is_saved_and_kept_beside_the_newest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(tmp_path, "checkpoint.keep_best=eval/accuracy", "checkpoint.keep=1")
    scene.accuracies = [0.9, 0.2, 0.5, 0.5, 0.4, 0.1]  # step 0 has no checkpoint
    with caplog.at_level(logging.INFO, "rlsys"):
        scene.play()
    assert scene.saved == [2, 5]
    assert load_state(checkpoints(tmp_path)[-1]).progress["kept"] | {"since": 0} == {
        "metric": "eval/accuracy",
        "threshold": 0.0,
        "value": 0.5,
        "step": 2,
        "since": 0,
    }
    assert "step 2 is the best so far: eval/accuracy 0.5" in caplog.text


def test_the_best_lives_through_a_resume(tmp_path: Path) -> None:
    first = Scene(tmp_path, "checkpoint.keep_best=-eval/accuracy", "checkpoint.keep=1", "train.num_steps=3")
    first.accuracies = [0.9, 0.2, 0.5, 0.5]
    first.play()
    assert first.saved == [1, 3]
    state = load_state(checkpoints(tmp_path)[-1])
    second = Scene(tmp_path, "checkpoint.keep_best=-eval/accuracy", "checkpoint.keep=1", state=state)
    second.accuracies = [0.9, 0.2, 0.5, 0.5, 0.3, 0.4]
    second.play()
    assert second.saved == [1, 5]


def test_training_that_no_longer_improves_ends_in_order_with_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = ["train.stop.metric=eval/accuracy", "train.stop.patience=2", "train.stop.threshold=0.05"]
    scene = Scene(tmp_path, *stop)
    scene.accuracies = [0.1, 0.5, 0.54, 0.53, 0.9, 0.9]
    scene.play()
    assert (scene.trained, scene.saved) == ([1, 2, 3], [3])
    assert "eval/accuracy was not better than 0.5, of step 1, in 2 evaluations (train.stop)" in caplog.text
    state = load_state(checkpoints(tmp_path)[-1])
    again = Scene(tmp_path, *stop, state=state)
    again.play()
    assert again.trained == []
    assert "the run was ended by train.stop: raise train.stop.patience" in caplog.text
    patient = Scene(tmp_path, *stop, "train.stop.patience=3", state=state)
    patient.accuracies = [0.1, 0.5, 0.54, 0.53, 0.5, 0.9]
    patient.play()
    assert patient.saved == [3, 4]  # the patience that was used is not given back


class FullDisk:
    """A disk that is full until a moment of the virtual clock."""

    def __init__(self, until: float) -> None:
        self.until, self.tries = until, 0

    def __call__(self) -> None:
        self.tries += 1
        if asyncio.get_running_loop().time() < self.until:
            raise NoRoomError("learner/1: no room on the disk for weights")


def full_at(scene: Scene, step: int, disk: FullDisk, stage: str = "save") -> Scene:
    """Let the disk be full for checkpoints of a step and all later ones."""
    for later in range(step, STEPS + 1):
        scene.at(stage, later, disk)
    return scene


@pytest.mark.parametrize(
    ("stage", "saved", "paused"),
    # Found out while training goes on, it pauses the run at the end of the next step, which is saved then.
    [("save", [3, 4, 5], 3), ("copy", [2, 4, 5], 2)],
)
def test_on_a_full_disk_the_run_pauses_and_goes_on_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str, saved: list[int], paused: int
) -> None:
    scene, disk = Scene(tmp_path, "checkpoint.every=2", KEEP), FullDisk(until=1500.0)
    trained: list[int] = []
    scene.at("batch", paused + 1, lambda: trained.append(disk.tries))
    full_at(scene, 2, disk, stage).play()
    assert (scene.saved, scene.trained) == (saved, [1, 2, 3, 4, 5])
    assert trained[0] > 30  # no step was begun in the pause
    pauses = [text for text in caplog.messages if text.startswith("the run pauses until there is room: learner/1")]
    assert len(pauses) == 3  # every ten minutes, not at every try
    assert f"there is room again: step {paused} is saved, the run goes on" in caplog.messages
    lost = "step 2 is not saved, a later one will be: learner/1: no room on the disk for weights"
    assert (lost in caplog.messages) is (stage == "save")
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_disk_that_stays_full_ends_the_run_at_the_deadline_with_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "rlsys.build.checkpoints.FULL_DISK_S", 3600.0
    )  # instead of a day, in which it tries 2,880 times
    scene = full_at(Scene(tmp_path, "checkpoint.every=2", KEEP), 4, FullDisk(until=7200.0))
    with pytest.raises(NoRoomError):
        scene.play()
    assert scene.saved == [2]


def test_no_new_try_is_made_while_less_is_free_than_a_checkpoint_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, disk = Scene(tmp_path, "checkpoint.every=2", KEEP), FullDisk(until=500.0)

    def free() -> int:
        return 0 if asyncio.get_running_loop().time() < disk.until else 10**6

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free()))
    full_at(scene, 4, disk).play()
    assert (scene.saved, disk.tries) == ([2, 5], 3)  # of step 4; of step 5 in vain, and with room


def test_ctrl_c_ends_the_pause(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = full_at(Scene(tmp_path, "checkpoint.every=2", KEEP), 4, FullDisk(until=10_000.0))
    with pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=100.0)
    assert scene.saved == [2]
    assert "no checkpoint of the end: learner/1: no room on the disk" in caplog.text


def test_ranks_that_do_not_see_the_folder_end_the_run_at_its_start(tmp_path: Path) -> None:
    seen: list[bool] = []

    async def check_sees(file: str) -> None:
        seen.append(Path(file).is_file())
        Rank.check_sees(
            SimpleNamespace(TAG="learner", _rank=1), file.replace(str(tmp_path), str(tmp_path / "elsewhere"))
        )

    scene = Scene(tmp_path)
    scene.learners._policy.check_sees = check_sees
    with pytest.raises(
        RlsysError, match=r"learner/1 on .* does not see .*/elsewhere, where checkpoints go: set run_dir"
    ):
        asyncio.run(scene.run.checkpoints.check_shared())
    assert (seen, list(tmp_path.iterdir())) == ([True], [])
    unwanted = Scene(tmp_path, "checkpoint.last=false")
    asyncio.run(unwanted.run.checkpoints.check_shared())
