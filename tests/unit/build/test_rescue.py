"""A run that ends early leaves a checkpoint, of whole models only, at the step that they are at."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.build.checkpoints import Checkpoints
from rlsys.build.run import Run
from rlsys.config.compose import load_config
from rlsys.errors import RlsysError, SuspectPolicyError, WeightMismatchError, WorkerDiedError
from rlsys.guards.guards import Guards
from rlsys.guards.missing_rewards import NoRewardError
from rlsys.learner.learners import Learners
from rlsys.metrics.step import StageClock
from rlsys.run_folder.checkpoint import RunState, checkpoints, load_state
from rlsys.run_folder.replay import ReplayFolders, dumped_steps
from rlsys.runtime.background import Background
from rlsys.train import train
from rlsys.types import Coefficients, Experience, ExperienceRow, Update
from tests.unit.virtual_time import run_virtual

STEPS = 5


class Scene:
    """The real loop, learners, guards and checkpoints around made-up workers that take one second for everything."""

    def __init__(self, run_dir: Path, *overrides: str) -> None:
        self.config = load_config([f"train.num_steps={STEPS}", "eval.every=1", *overrides])
        self.run_dir = run_dir
        self.hooks: dict[tuple[str, int], Callable[[], Any]] = {}  # what happens at the end of a stage of a step
        self.step = 0
        self.refreshed = True
        self.trained: list[int] = []
        self.dumps: list[str | None] = []
        state = RunState(step=0, prompt_cursor=0)
        self.guards = Guards.from_config(self.config, run_dir, state, self._nothing, self._nothing)
        policy: Any = SimpleNamespace(update=self._update, save=self._save)
        folders = ReplayFolders(run_dir, 2, 0) if self.config.logging.replay else None
        self.learners = Learners(self.config, StageClock(), policy, None, Coefficients(0.0, 0.0), 0, folders)
        prompts = SimpleNamespace(cursor=99, digest="")
        orchestrator = SimpleNamespace(
            next_batch=self._stage("batch"),
            pending_positions=list,
            finished=lambda step: [],
            ledger=lambda step: {"at": step},
        )
        groups: Any = SimpleNamespace(write=self._nothing)
        reference = SimpleNamespace(
            refresh=self._stage("refresh"), save=self._nothing, is_whole=lambda step: self.refreshed
        )
        prepared: Any = SimpleNamespace(config=self.config, model_path="model")
        parts: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Run))
        parts |= {
            "prepared": prepared,
            "roles": SimpleNamespace(cluster=SimpleNamespace(calls=SimpleNamespace(), unhurried=self._unhurried)),
            "state": state,
            "clock": StageClock(),
            "orchestrator": orchestrator,
            "experience": SimpleNamespace(build=self._build),
            "learners": self.learners,
            "weights": SimpleNamespace(broadcast=self._stage("broadcast"), finish=self._nothing),
            "reference": reference,
            "evaluation": SimpleNamespace(evaluate=self._stage("evaluation", {})),
            "recorder": SimpleNamespace(
                record=self._stage("record"), record_start=lambda _: None, finish=self._nothing
            ),
            "guards": self.guards,
            "supervisor": SimpleNamespace(watch=self._nothing),
            "checkpoints": Checkpoints(
                prepared, run_dir, prompts, orchestrator, self.learners, reference, self.guards, groups
            ),
        }
        self.run = Run(**parts)

    def at(self, stage: str, step: int, action: Callable[[], Any]) -> Scene:
        """Do something at the end of a stage."""
        self.hooks[stage, step] = action
        return self

    def play(self, *, interrupt_at: float | None = None, again_after: float | None = None) -> None:
        """Run to the end, or be cancelled after so many seconds as by Ctrl-C, and perhaps once more."""

        async def main() -> None:
            self.run.roles.cluster.calls.background = Background()
            task = asyncio.ensure_future(self.run.supervise(train(self.run)))
            loop = asyncio.get_running_loop()
            if interrupt_at is not None:
                loop.call_later(interrupt_at, task.cancel)
            if interrupt_at is not None and again_after is not None:
                loop.call_later(interrupt_at + again_after, task.cancel)
            await task

        run_virtual(main())

    @property
    def saved(self) -> list[int]:
        """The steps of the complete checkpoints."""
        return [load_state(folder).step for folder in checkpoints(self.run_dir)]

    def _stage(self, name: str, result: Any = None) -> Any:
        async def work(*args: Any) -> Any:
            # The loop numbers every stage but `record` by its first argument, as `record` does too.
            await asyncio.sleep(1.0)
            self.hooks.get((name, args[0]), lambda: None)()
            return result

        return work

    async def _build(self, _: Any) -> Experience:
        row = ExperienceRow(0, 0, 0, 1.0, 1.0, 4, 2)
        return Experience(((row,),), (), None, None, 0, Coefficients(0.0, 0.0))

    async def _update(self, _: Experience, dump_to: str | None) -> Update:
        step = len(self.trained) + 1
        self.dumps.append(dump_to)
        await asyncio.sleep(1.0)
        self.hooks.get(("update", step), lambda: None)()
        self.trained.append(step)
        return Update({})

    async def _save(self, folder: str) -> None:
        await asyncio.sleep(1.0)
        (Path(folder) / "weights").write_text(str(len(self.trained)))
        self.hooks.get(("save", len(self.trained)), lambda: None)()

    async def _nothing(self, *_: Any) -> Any:
        return None

    @contextlib.asynccontextmanager
    async def _unhurried(self) -> AsyncIterator[None]:
        yield


def fails(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


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


@pytest.mark.parametrize("overrides", [["checkpoint.rescue_s=0"], ["checkpoint.last=false"]])
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
