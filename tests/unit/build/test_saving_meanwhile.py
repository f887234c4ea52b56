"""Checkpoints whose files are written while training goes on: one at a time, of the step that was copied."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from rlsys.errors import RlsysError, SuspectPolicyError, WorkerDiedError
from rlsys.run_folder.checkpoint import checkpoint_path, checkpoints, load_state
from tests.unit.build.scene import STEPS, Scene, fails

KEEP = "checkpoint.keep=9"
# Seconds: a step takes 6, the copy for a checkpoint 1, and the start 2. Here step 2 ends after 14.


def scene_of(run_dir: Path, *overrides: str, write_s: float) -> Scene:
    """Return a run that saves every second step and the last, with a slow disk."""
    scene = Scene(run_dir, KEEP, "checkpoint.every=2", *overrides)
    scene.write_s = write_s
    return scene


def begun(scene: Scene, step: int) -> list[float]:
    """Return a list that gets the time at which a step's batch is there, a second after the step began."""
    times: list[float] = []
    scene.at("batch", step, lambda: times.append(asyncio.get_running_loop().time()))
    return times


def test_training_waits_for_the_copy_only(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, write_s=9.0)
    third = begun(scene, 3)
    whole: list[list[int]] = []
    scene.at("update", 4, lambda: whole.append(scene.saved))  # after 15 + 8 s, and the files after 15 + 9
    scene.at("refresh", 4, lambda: whole.append(scene.saved))
    scene.play()
    assert third == [14.0 + scene.copy_s + 1.0]
    assert whole == [[], [2]]
    assert (scene.saved, scene.trained) == ([2, 4, 5], [1, 2, 3, 4, 5])


def test_what_is_saved_is_of_the_step_that_was_copied(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, write_s=9.0)
    scene.at("evaluation", 2, lambda: scene.guards.alarms.signals.best.update(format=0.5))
    scene.at("evaluation", 3, lambda: scene.guards.alarms.signals.best.update(format=1.0))
    scene.play()
    second = checkpoint_path(tmp_path, 2)
    state = load_state(second)
    assert (state.step, state.ledger, state.reward_best) == (2, {"at": 2}, {"format": 0.5})
    assert (second / "weights").read_text() == "2"


@pytest.mark.parametrize("last", ["true", "false"])
def test_the_next_one_and_the_end_wait_for_it(tmp_path: Path, last: str) -> None:
    """The scene fails when two are written at once."""
    scene = scene_of(tmp_path, f"checkpoint.last={last}", write_s=100.0)
    fifth = begun(scene, 5)
    scene.play()
    assert fifth == [15.0 + 100.0 + scene.copy_s + 1.0]
    assert scene.saved == ([2, 4, 5] if last == "true" else [2, 4])


def test_time_alone_makes_none_due_while_one_is_written(tmp_path: Path) -> None:
    """Training would wait for a slow disk without end."""
    scene = Scene(tmp_path, KEEP, "checkpoint.every_s=1", "checkpoint.last=false")
    scene.write_s = 15.0
    fourth = begun(scene, 4)
    scene.play()
    assert scene.saved == [1, 4]  # after 8 s; after 27 s, when the first was written
    assert fourth == [2.0 + 3 * 6.0 + scene.copy_s + 1.0]


@pytest.mark.parametrize(("write_s", "trained"), [(1.0, 3), (15.0, 4)])
def test_a_failure_ends_the_run_at_the_end_of_a_step(tmp_path: Path, write_s: float, trained: int) -> None:
    """The models are sound, so their step is saved before the end."""
    scene = scene_of(tmp_path, write_s=write_s).at("save", 2, fails(RlsysError("learner/0: the disk is broken")))
    with pytest.raises(RlsysError, match="the disk is broken"):
        scene.play()
    assert (scene.trained[-1], scene.saved) == (trained, [trained])


def test_a_failure_of_the_copy_ends_the_run_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ranks that wait for each other in it could not begin another one."""
    scene = scene_of(tmp_path, write_s=1.0).at("copy", 2, fails(WorkerDiedError("learner/1 is gone")))
    with pytest.raises(WorkerDiedError):
        scene.play()
    assert (scene.trained, scene.saved) == ([1, 2], [])
    assert "no checkpoint of the end: learner/1 is gone" in caplog.text


@pytest.mark.parametrize(("interrupt_at", "kept"), [(15.5, [2]), (20.0, [2, 3])])
def test_ctrl_c_ends_the_one_that_is_written_and_saves_a_later_step_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, interrupt_at: float, kept: list[int]
) -> None:
    scene = scene_of(tmp_path, write_s=30.0)
    with caplog.at_level(logging.WARNING, "rlsys"), pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=interrupt_at)
    assert scene.saved == kept
    assert caplog.messages[0] == ("the run ends early: step 2 is being saved (a Ctrl-C from now on skips this)")
    newest = checkpoint_path(tmp_path, kept[-1])
    assert caplog.messages[-1] == f"saved {newest}: the same command with run_dir={tmp_path} resume=auto continues"


def test_a_second_ctrl_c_leaves_the_one_before(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, write_s=8.0)
    with pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=32.0, again_after=1.0)  # step 4 is written since 29 s
    assert scene.saved == [2]


@pytest.mark.parametrize("rescue_s", [0.0, 300.0])
def test_a_run_that_fails_meanwhile_ends_it_unless_there_is_no_time(tmp_path: Path, rescue_s: float) -> None:
    scene = scene_of(tmp_path, f"checkpoint.rescue_s={rescue_s}", write_s=30.0)
    scene.at("update", 3, fails(WorkerDiedError("reference/0 is gone")))  # the models are not whole any more
    with pytest.raises(WorkerDiedError):
        scene.play()
    assert scene.saved == ([2] if rescue_s else [])
    assert scene.num_open == 0  # nothing goes on in the background


def test_a_policy_that_becomes_suspect_later_does_not_end_it(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, write_s=30.0).at("record", 3, fails(SuspectPolicyError("a stale engine")))
    with pytest.raises(SuspectPolicyError):
        scene.play()
    assert scene.saved == [2]


def test_one_whose_writing_was_cut_off_leaves_the_one_before(tmp_path: Path) -> None:
    """As after the death of the driver: the hidden folder of the next is no checkpoint."""
    scene = scene_of(tmp_path, "checkpoint.rescue_s=0", write_s=8.0)
    with pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=31.0)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000002"]
    assert (tmp_path / "checkpoints" / ".step-000004.partial").is_dir()


def test_a_step_after_one_that_is_still_written_is_dumped_for_replay(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, "logging.replay=true", write_s=9.0)
    scene.play()
    dumped = [dump and Path(dump).name for dump in scene.dumps]
    assert dumped == ["step-000001", None, "step-000003", None, "step-000005"]
    assert len(scene.trained) == STEPS
