"""A run that ends early leaves a checkpoint, of whole models only, at the step that they are at."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from rlsys.errors import RlsysError, SuspectPolicyError, WeightMismatchError, WorkerDiedError
from rlsys.guards.missing_rewards import NoRewardError
from rlsys.run_folder.checkpoint import checkpoints, load_state
from rlsys.run_folder.replay import dumped_steps
from tests.unit.build.scene import STEPS, Scene, fails


# Seconds of a step: batch 1, update 1, broadcast 1, refresh 1, evaluation 1, record 1; before them the start's 2.
def during(step: int, stage: str) -> float:
    order = ("batch", "update", "broadcast", "refresh", "evaluation", "record")
    return 2.0 + 6.0 * (step - 1) + order.index(stage) + 0.5


@pytest.mark.parametrize(
    ("stage", "kept"),
    [("batch", 2), ("update", 3), ("broadcast", 3), ("refresh", 3), ("evaluation", 3), ("record", 3)],
)
def test_ctrl_c_keeps_the_step_that_the_models_are_at(
    tmp_path: Path, stage: str, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An update that runs is made to its end, and counts."""
    scene = Scene(tmp_path)
    scene.guards.alarms.signals.best["format"] = 1.0
    with caplog.at_level(logging.WARNING, "rlsys"), pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=during(3, stage))
    assert scene.saved == [kept]
    (folder,) = checkpoints(tmp_path)
    assert (folder / "weights").read_text() == str(kept)
    state = load_state(folder)
    assert (state.ledger, state.reward_best) == ({"at": kept}, {"format": 1.0})
    assert f"saved {folder}: the same command with run_dir={tmp_path} resume=auto continues" in caplog.text


def test_a_second_ctrl_c_skips_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=during(3, "batch"), again_after=0.5)
    assert scene.saved == []


def test_a_second_ctrl_c_does_not_wait_for_the_update(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    with pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=during(3, "update"), again_after=0.1)
    assert (scene.saved, scene.trained) == ([], [1, 2])


@pytest.mark.parametrize("stage", ["batch", "broadcast", "evaluation", "record"])
@pytest.mark.parametrize("error", [WorkerDiedError("rollout/0 is gone"), RuntimeError("a bug")])
def test_so_does_a_failure_of_another_part(tmp_path: Path, stage: str, error: Exception) -> None:
    scene = Scene(tmp_path).at(stage, 3, fails(error))
    with pytest.raises(type(error), match=str(error)):
        scene.play()
    assert scene.saved == [2 if stage == "batch" else 3]


def test_models_in_the_middle_of_an_update_are_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(tmp_path).at("update", 3, fails(WorkerDiedError("learner/0 is gone")))
    with caplog.at_level(logging.WARNING, "rlsys"), pytest.raises(WorkerDiedError):
        scene.play()
    assert scene.saved == []
    assert "step 3 was cut off while it changed the models" in caplog.text


def test_ranks_that_refused_to_begin_the_update_are_whole(tmp_path: Path) -> None:
    scene = Scene(tmp_path).at("update", 3, fails(WeightMismatchError("they disagree")))
    with pytest.raises(WeightMismatchError):
        scene.play()
    assert scene.saved == [2]


def test_a_policy_that_may_have_been_trained_on_samples_of_other_weights_is_not_saved(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "checkpoint.every=2").at("record", 3, fails(SuspectPolicyError("a stale engine")))
    with pytest.raises(SuspectPolicyError):
        scene.play()
    assert scene.saved == [2]


def test_a_reference_that_lags_behind_is_not_saved(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.refreshed = False
    with pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=during(3, "refresh"))
    assert scene.saved == []


def test_a_checkpoint_that_is_being_written_is_finished_and_not_begun_again(tmp_path: Path) -> None:
    scene, written = Scene(tmp_path, "checkpoint.every=3"), []
    scene.at("save", 3, lambda: written.append(3))
    with pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=during(3, "record") + 1.0)
    assert (scene.saved, written) == ([3], [3])


def test_nothing_is_written_twice_or_before_the_first_step(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "checkpoint.every=3")
    with pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=during(4, "batch") + 1.0)  # the checkpoint of step 3 took a second
    assert scene.saved == [3]
    early = Scene(tmp_path / "early")
    with pytest.raises(asyncio.CancelledError):
        early.play(interrupt_at=during(1, "batch"))
    assert early.saved == []


@pytest.mark.parametrize("overrides", [["checkpoint.rescue_s=0"], ["checkpoint.last=false", "checkpoint.every_s=0"]])
def test_who_wants_none_gets_none(tmp_path: Path, overrides: list[str]) -> None:
    scene = Scene(tmp_path, *overrides)
    with pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=during(3, "batch"))
    assert scene.saved == []


@pytest.mark.parametrize(
    ("overrides", "action", "names"),
    [
        (["checkpoint.rescue_s=0.5"], lambda: None, "not written within checkpoint.rescue_s=0.5"),
        ([], fails(OSError("no space left on device")), "no space left on device"),
    ],
)
def test_a_checkpoint_that_fails_does_not_hide_why_the_run_ended(
    tmp_path: Path, overrides: list[str], action: Callable[[], None], names: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(tmp_path, *overrides).at("record", 3, fails(RlsysError("the cause"))).at("save", 3, action)
    with caplog.at_level(logging.WARNING, "rlsys"), pytest.raises(RlsysError, match="the cause"):
        scene.play()
    assert scene.saved == []
    assert names in caplog.text


def test_why_the_run_ends_is_said_before_the_checkpoint_that_may_take_minutes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also to who then interrupts the saving."""
    scene = Scene(tmp_path).at("record", 3, fails(WorkerDiedError("rollout/0 is gone\nthe end of its log")))
    with caplog.at_level(logging.WARNING, "rlsys"), pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=during(3, "record") + 1.0)
    assert caplog.messages[0] == "the run failed: WorkerDiedError: rollout/0 is gone"
    assert scene.saved == []


@pytest.mark.parametrize("guard", ["rewards", "eval_rewards"])
@pytest.mark.parametrize("every", [0, 3])
def test_a_guard_that_ends_the_run_leaves_the_step_s_checkpoint(tmp_path: Path, guard: str, every: int) -> None:
    """Also the one that is due at this very step."""
    scene = Scene(tmp_path, f"checkpoint.every={every}", "scoring.max_unscored_steps=1")
    counted = getattr(scene.guards, guard)
    scene.at("record" if guard == "rewards" else "evaluation", 3, lambda: counted.record(3, "the service is down"))
    with pytest.raises(NoRewardError, match="the service is down"):
        scene.play()
    assert scene.saved == [3]


def test_a_paused_run_starts_no_step_and_its_end_leaves_a_checkpoint(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "alarms.unscored=pause", "scoring.max_unscored_steps=1")
    scene.at("record", 3, lambda: scene.guards.rewards.record(3, "the service is down"))
    with pytest.raises(asyncio.CancelledError):
        scene.play(interrupt_at=3600.0)
    assert scene.trained == [1, 2, 3]
    assert scene.saved == [3]
    assert not (tmp_path / "paused").exists()


def test_the_first_step_and_those_after_a_checkpoint_are_dumped(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "logging.replay=true", "checkpoint.every=2")
    scene.play()
    assert [dump and Path(dump).name for dump in scene.dumps] == [
        "step-000001",
        None,
        "step-000003",
        None,
        "step-000005",
    ]
    assert sorted(dumped_steps(tmp_path)) == [3, 5]
    scene = Scene(tmp_path, "checkpoint.every=2")
    scene.play()
    assert scene.dumps == [None] * STEPS


def test_a_run_that_ends_in_order_is_as_before(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.play()
    assert (scene.saved, scene.trained) == ([STEPS], [1, 2, 3, 4, 5])
