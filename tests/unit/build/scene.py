"""A run of made-up workers around the real loop, on a virtual clock, for tests of what it saves and when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlsys.build.checkpoints import Checkpoints
from rlsys.build.run import Run
from rlsys.config.compose import load_config
from rlsys.guards.guards import Guards
from rlsys.learner.learners import Learners
from rlsys.metrics.step import StageClock
from rlsys.run_folder.checkpoint import RunState, checkpoints, load_state
from rlsys.run_folder.replay import ReplayFolders
from rlsys.runtime.background import Background
from rlsys.train import train
from rlsys.types import Coefficients, Experience, ExperienceRow, Update
from tests.unit.virtual_time import run_virtual

STEPS = 5


class Scene:
    """The real loop, learners, guards and checkpoints around made-up workers that take one second for everything."""

    def __init__(self, run_dir: Path, *overrides: str, state: RunState | None = None) -> None:
        self.config = load_config([f"train.num_steps={STEPS}", "eval.every=1", "checkpoint.every_s=0", *overrides])
        self.run_dir = run_dir
        self.hooks: dict[tuple[str, int], Callable[[], Any]] = {}  # what happens at the end of a stage of a step
        self.step = 0
        self.copy_s, self.write_s = 1.0, 0.5  # of the learner in a checkpoint
        self.ending_after: range = range(0)  # steps at whose end a node has announced that it goes
        self.mirrored: list[str] = []
        self.num_open = 0
        self.refreshed = True
        self.trained: list[int] = []
        self.recorded: list[int] = []
        self.begun = 0
        self.dumps: list[str | None] = []
        self.accuracies: list[float] = []  # of each step, from step 0; empty: no evaluations
        self.is_running = False
        state = state or RunState(step=0, prompt_cursor=0)
        self.guards = Guards.from_config(self.config, run_dir, state, self._nothing, self._nothing)
        policy: Any = SimpleNamespace(update=self._update, save=self._save)
        folders = ReplayFolders(run_dir, 2, 0) if self.config.logging.replay else None
        self.learners = Learners(self.config, StageClock(), policy, None, Coefficients(0.0, 0.0), state.step, folders)
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
        recorder: Any = SimpleNamespace(
            begin=self._begin,
            record=self._record,
            record_cut_off=self._record_cut_off,
            record_start=lambda _: None,
            finish=self._nothing,
        )
        prepared: Any = SimpleNamespace(config=self.config, model_path="model")
        parts: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Run))
        parts |= {
            "prepared": prepared,
            "roles": SimpleNamespace(
                cluster=SimpleNamespace(calls=SimpleNamespace(), unhurried=self._unhurried, watch=self._nothing)
            ),
            "state": state,
            "clock": StageClock(),
            "orchestrator": orchestrator,
            "experience": SimpleNamespace(build=self._build),
            "learners": self.learners,
            "weights": SimpleNamespace(broadcast=self._stage("broadcast"), finish=self._nothing),
            "reference": reference,
            "evaluation": SimpleNamespace(evaluate=self._evaluate),
            "recorder": recorder,
            "guards": self.guards,
            "supervisor": SimpleNamespace(watch=self._nothing),
            "scaling": SimpleNamespace(watch=self._nothing),
            "evacuation": SimpleNamespace(watch=self._nothing),
            "checkpoints": Checkpoints(
                prepared,
                run_dir,
                prompts,
                orchestrator,
                self.learners,
                reference,
                recorder,
                guards=self.guards,
                finished=groups,
                mirror=self,  # type: ignore[arg-type]
                ends_soon=lambda: len(self.trained) in self.ending_after,
                clock=self._time,
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
            self.is_running = True
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

    async def _evaluate(self, step: int) -> dict[str, float]:
        await self._stage("evaluation")(step)
        return {"eval/accuracy": self.accuracies[step]} if self.accuracies else {}

    async def _record(self, step: int, *parts: Any) -> None:
        await self._stage("record")(step)
        self.guards.progress.look(step, parts[-1])
        self.recorded.append(step)

    def _begin(self, step: int, *_: Any) -> None:
        self.begun = step

    async def _record_cut_off(self, step: int, update: Update) -> None:
        if step == self.begun and step not in self.recorded:
            await self._record(step, update, {})

    def _time(self) -> float:
        return asyncio.get_running_loop().time() if self.is_running else 0.0

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

    async def _save(self, folder: str, on_begun: Callable[[], None] | None) -> None:
        self.num_open += 1
        assert self.num_open == 1, "two at once"
        try:
            step = len(self.trained)
            await asyncio.sleep(self.copy_s)
            self.hooks.get(("copy", step), lambda: None)()
            if on_begun is not None:
                on_begun()
            await asyncio.sleep(self.write_s)
            (Path(folder) / "weights").write_text(str(step))
            self.hooks.get(("save", step), lambda: None)()
        finally:
            self.num_open -= 1

    def put(self, folder: Path, keep: Collection[str]) -> None:
        """Be the second place of checkpoints."""
        self.hooks.get(("mirror", int(folder.name[-2:])), lambda: None)()
        self.mirrored = sorted({folder.name, *keep})

    async def _nothing(self, *_: Any) -> Any:
        return None

    @contextlib.asynccontextmanager
    async def _unhurried(self) -> AsyncIterator[None]:
        yield


def fails(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action
