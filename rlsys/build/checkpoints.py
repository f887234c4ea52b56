"""Checkpoints when they are due, and the one that a run continues from."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rlsys.algorithms.coefficients import initial_coefficients
from rlsys.build.finished_groups import FinishedGroups
from rlsys.config.schema import Config
from rlsys.data.stream import PromptStream
from rlsys.errors import NoRoomError
from rlsys.guards.guards import Guards
from rlsys.learner.learners import Learners
from rlsys.orchestrator.orchestrator import Orchestrator
from rlsys.preflight.prepared import Prepared
from rlsys.recorder import Recorder
from rlsys.reference.policy import Reference
from rlsys.run_folder import checkpoint_writer
from rlsys.run_folder.checkpoint import RunState, checkpoint_path, checkpoints, load_state, newest, step_of
from rlsys.run_folder.checkpoint_writer import set_aside_after
from rlsys.run_folder.layout import CHECKPOINTS
from rlsys.run_folder.manifest import size_of
from rlsys.run_folder.metrics import set_aside
from rlsys.run_folder.mirror import Mirror
from rlsys.run_folder.resume import fixed_options
from rlsys.runtime.background import cancel
from rlsys.runtime.daemon_threads import DaemonThreads
from rlsys.types import Coefficients, ScoredGroup

# On a full disk: seconds between two looks for room, between two messages, and until the run ends after all.
RETRY_S = 30.0
LOG_EVERY_S = 600.0
FULL_DISK_S = 24 * 3600.0
MIRROR_S = 3600.0  # for one copy of a checkpoint to its second place

logger = logging.getLogger(__name__)


@dataclass
class Open:
    """A checkpoint that is being written: its step, and whether training may go on."""

    step: int
    may_release: bool  # whether training goes on once the ranks copy and write, or waits for the files
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[Path] = field(init=False)

    @property
    def is_released(self) -> bool:
        """Whether training has gone on."""
        return self.may_release and self.begun.is_set()


class Checkpoints:
    """The writer of everything that training changes, at the steps that `checkpoint.*` names.

    Training waits until the ranks have begun. The files are written while training goes on, one checkpoint at a time.
    """

    def __init__(
        self,
        prepared: Prepared,
        run_dir: Path,
        prompts: PromptStream,
        orchestrator: Orchestrator,
        learners: Learners,
        reference: Reference,
        recorder: Recorder,
        *,
        guards: Guards,
        finished: FinishedGroups,
        mirror: Mirror | None = None,
        ends_soon: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = prepared.config
        self._run_dir = run_dir
        self._prompts = prompts
        self._orchestrator = orchestrator
        self._learners = learners
        self._reference = reference
        self._guards = guards
        self._finished = finished
        self._mirror = mirror  # a second place for them
        self._ends_soon = ends_soon  # whether a node with learner ranks has announced its end
        self._recorder = recorder
        self._fixed = fixed_options(prepared)
        self._saved = learners.step  # the step of the newest checkpoint, or 0
        self._clock = clock
        self._saved_at = clock()  # when training went on after the last one
        self._is_ending = asyncio.Event()
        self._open: Open | None = None

    @property
    def _are_wanted(self) -> bool:
        config = self._config.checkpoint
        return bool(config.every or config.every_s or config.last or config.keep_best)

    async def check_shared(self) -> None:
        """Raise RlsysError unless every rank sees the run's folder: parts on several disks would look complete."""
        if not self._are_wanted:
            return
        file = self._run_dir / f".seen-by-ranks-{uuid.uuid4().hex}"
        file.touch()
        try:
            await self._learners.check_sees(str(file))
        finally:
            file.unlink()

    async def save(self, step: int) -> None:
        """Begin a checkpoint after `step`, if one is due, and return once training may go on.

        The one before is waited for where another is due, and both at the end of the run. What failed while training
        went on is raised by the next call, but for a full disk: then this step is saved in place of the one that was
        not, and the run waits until it is.
        """
        is_due, is_last = self._is_due(step), self._is_last(step)
        has_room = True
        if self._open is not None and (is_due or is_last or self._open.task.done()):
            has_room = await self._end_open(self._open)
        if is_due or not has_room:
            await self._save(step, may_release=has_room and not is_last)

    async def _end_open(self, opened: Open) -> bool:
        """Wait for a checkpoint that is being written; return False when training went on and there was no room."""
        try:
            await asyncio.shield(opened.task)
        except NoRoomError as error:
            if not opened.is_released:
                raise
            logger.warning("step %d is not saved, a later one will be: %s", opened.step, error)
            return False
        return True

    def _is_last(self, step: int) -> bool:
        return step == self._config.train.num_steps or self._guards.progress.is_over

    def _is_due(self, step: int) -> bool:
        config = self._config.checkpoint
        if config.last and self._is_last(step):
            return True
        # Not while one is written: training would wait for a disk that takes longer than `every_s`, again and again.
        is_time = config.every_s > 0 and self._clock() - self._saved_at >= config.every_s
        is_wanted = is_time or (self._ends_soon() and self._are_wanted)
        is_named = (config.every > 0 and step % config.every == 0) or step == self._guards.progress.kept.step
        return is_named or (is_wanted and self._open is None)

    async def rescue(self, *, is_suspect: bool = False) -> None:
        """Write a checkpoint of a run that ends early, unless its models are in the middle of a step, or suspect.

        One that is being written is ended first. It takes at most `checkpoint.rescue_s`. Failures are only logged: the
        run ends for a cause of its own.
        """
        config = self._config.checkpoint
        self._is_ending.set()
        try:
            if config.rescue_s > 0 and self._are_wanted:
                async with asyncio.timeout(config.rescue_s):
                    await self._rescue(is_suspect)
        except TimeoutError:
            logger.warning("no checkpoint of the end: not written within checkpoint.rescue_s=%g", config.rescue_s)
        except Exception as error:  # whatever it is, the error that ended the run is the one to raise
            logger.warning("no checkpoint of the end: %s", error)
        finally:
            if self._open is not None:
                await cancel([self._open.task])

    async def _rescue(self, is_suspect: bool) -> None:
        if self._open is not None:
            await self._rescue_open(self._open)
        if is_suspect:  # a checkpoint of now would take the place of a sound one
            return
        if self._learners.is_updating:
            logger.warning("the run ends early, after the updates of this step (a Ctrl-C from now on ends it at once)")
        is_whole, step = await self._learners.settle(), self._learners.step
        if not (is_whole and self._reference.is_whole(step)):
            logger.warning("no checkpoint of the end: step %d was cut off while it changed the models", step + 1)
        elif step > self._saved:
            logger.warning("the run ends early: saving step %d first (a Ctrl-C from now on skips this)", step)
            try:
                await self._recorder.record_cut_off(step, self._learners.made)
            except Exception as error:  # perhaps what ended the run; the weights are worth more
                logger.warning("step %d is not in the metrics: %s", step, error)
            await self._save(step, may_release=False)
            self._log_rescued(step)

    async def _rescue_open(self, opened: Open) -> None:
        logger.warning("the run ends early: step %d is being saved (a Ctrl-C from now on skips this)", opened.step)
        try:
            await asyncio.shield(opened.task)
        except Exception as error:
            # Ranks that failed in a call of theirs may wait for each other, and the disk was full until now.
            if not opened.is_released:
                raise
            logger.warning("step %d is not saved: %s", opened.step, error)
        else:
            self._log_rescued(opened.step)

    def _log_rescued(self, step: int) -> None:
        folder = checkpoint_path(self._run_dir, step)
        logger.warning("saved %s: the same command with run_dir=%s resume=auto continues", folder, self._run_dir)

    async def _save(self, step: int, *, may_release: bool) -> None:
        # Cancelling the wait does not end the writing: ranks write together, and go on. `rescue` waits for them again.
        opened = self._open = Open(step, may_release)
        opened.task = asyncio.ensure_future(self._written(opened))
        # Its failure is raised by a later call, if there is one.
        opened.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        if may_release:
            begun = asyncio.ensure_future(opened.begun.wait())
            try:
                await asyncio.wait([begun, opened.task], return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel([begun])
        if not opened.is_released:
            await asyncio.shield(opened.task)
        self._saved_at = self._clock()

    async def _written(self, opened: Open) -> Path:
        # All of it now: groups finish while the weights are written, and training changes the rest.
        step = opened.step
        write = partial(self._write, opened, self._orchestrator.finished(step))
        state = deepcopy(self._state(step))
        keep, best = self._config.checkpoint.keep, self._guards.progress.kept.step
        started, logged = None, -math.inf
        while True:
            try:
                folder = await checkpoint_writer.save(self._run_dir, state, write, keep=keep, also=[best])
                break
            except NoRoomError as error:
                now = self._clock()
                started = now if started is None else started
                # Of a step that training has left behind nothing can be copied again.
                if opened.is_released or self._is_ending.is_set() or now - started >= FULL_DISK_S:
                    raise
                if now - logged >= LOG_EVERY_S:
                    logger.warning("the run pauses until there is room: %s. Earlier checkpoints stay", error)
                    logged = now
                await self._wait_for_room()
        if started is not None:
            logger.warning("there is room again: step %d is saved, the run goes on", step)
        self._saved = step
        if self._mirror is not None:
            await self._copy_to(self._mirror, folder)
        self._open = None
        return folder

    async def _copy_to(self, mirror: Mirror, folder: Path) -> None:
        """Copy a checkpoint to its second place; the run goes on without when it cannot be reached."""
        kept = [path.name for path in checkpoints(self._run_dir)]
        try:
            async with asyncio.timeout(MIRROR_S):
                # Not `to_thread`: the end of the run would wait for a copy that hangs.
                await asyncio.get_running_loop().run_in_executor(DaemonThreads("mirror"), mirror.put, folder, kept)
        except Exception as error:  # each file system has its own
            logger.warning("%s is not in checkpoint.mirror: %s: %s", folder, type(error).__name__, error)

    async def _wait_for_room(self) -> None:
        """Wait until the disk has room for one more checkpoint, the run is to end, or the pause is to be logged."""
        newest = checkpoints(self._run_dir)[-1:]
        need = sum(map(size_of, newest))  # of the first checkpoint it is not known
        until = self._clock() + LOG_EVERY_S
        while not self._is_ending.is_set() and self._clock() < until:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_ending.wait(), RETRY_S)
            if shutil.disk_usage(self._run_dir / CHECKPOINTS).free >= need:
                return

    async def _write(self, opened: Open, finished: Sequence[tuple[int, ScoredGroup]], folder: str) -> None:
        # The reference first, before it is refreshed. The learners last: nothing fails while they write to `folder`.
        await self._reference.save(folder)
        await self._finished.write(Path(folder), finished)
        # Where training waits for the files anyhow, no copy takes memory.
        await self._learners.save(folder, opened.begun.set if opened.may_release else None)

    def _state(self, step: int) -> RunState:
        now, nonfinite, missing = self._learners.coefficients, self._guards.nonfinite, self._guards.rewards
        return RunState(
            step=step,
            prompt_cursor=self._prompts.cursor,
            kl_coef=now.kl,
            entropy_coef=now.entropy,
            entropy_level=now.entropy_level,
            nonfinite_in_a_row=nonfinite.in_a_row,
            nonfinite_total=nonfinite.total,
            prompts_pending=self._orchestrator.pending_positions(),
            prompts_finished=[position for position, _ in self._orchestrator.finished(step)],
            ledger=self._orchestrator.ledger(step),
            prompts_digest=self._prompts.digest,
            unscored_in_a_row=missing.in_a_row,
            unscored_total=missing.total,
            eval_unscored_in_a_row=self._guards.eval_rewards.in_a_row,
            eval_unscored_total=self._guards.eval_rewards.total,
            reward_best=self._guards.alarms.signals.best,
            progress=self._guards.progress.state(),
            started_coef={"kl": self._config.algorithm.kl.coef, "entropy": self._config.algorithm.entropy.coef},
            written_with=self._fixed,
        )


def find_start(config: Config, run_dir: Path) -> tuple[RunState, Path | None]:
    """Return the run's state and the checkpoint to continue from, or None for a new run.

    A start without a checkpoint moves the files of an earlier start aside; nothing is deleted.
    """
    found = newest(run_dir) if config.resume == "auto" else None
    set_aside_after(run_dir, 0 if found is None else step_of(found))
    if found is None:
        earlier = set_aside(run_dir)
        if earlier is not None:
            logger.info("no checkpoint to resume from: starting over; what was there is kept in %s", earlier)
        return RunState(step=0, prompt_cursor=0), None
    state = load_state(found)
    logger.info("resuming from %s after step %d", found, state.step)
    if state.ledger:
        of = state.ledger
        logger.info(
            "of %d prompts %d are trained, %d filtered, %d finished for later steps; %d were in flight: sampled again",
            *(of[name] for name in ("issued", "trained", "filtered", "finished", "in_flight")),
        )
    return state, found


def start_coefficients(config: Config, state: RunState) -> Coefficients:
    """Return the coefficients as configured, or where an adaptive one stood at the checkpoint.

    An adaptive one that is configured to start elsewhere than at the checkpoint starts there.
    """
    start = initial_coefficients(config.algorithm)
    kl, entropy, then = config.algorithm.kl, config.algorithm.entropy, state.started_coef
    if kl.target is not None and state.kl_coef is not None and then.get("kl", kl.coef) == kl.coef:
        start = replace(start, kl=state.kl_coef)
    same = then.get("entropy", entropy.coef) == entropy.coef
    if entropy.target is not None and state.entropy_coef is not None and same:
        start = replace(start, entropy=state.entropy_coef, entropy_level=state.entropy_level)
    return start


def start_prompts(prepared: Prepared, state: RunState) -> PromptStream:
    """Return the stream of training prompts from where the checkpoint stood; other prompts than then are warned of.

    Those of finished groups are pending too, until `PromptStream.keep` takes out what need not be sampled again.
    """
    prompts, order = prepared.train_prompts, prepared.train_order
    pending = [*state.prompts_pending, *state.prompts_finished]
    stream = PromptStream(prompts, order, cursor=state.prompt_cursor, pending=pending)
    if state.prompts_digest and state.prompts_digest != stream.digest:
        logger.warning(
            "the training prompts differ from those at the checkpoint: some may come again before all have come once"
        )
    return stream
