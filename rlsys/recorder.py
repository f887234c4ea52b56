"""The record of each step: a row of metrics, the rollouts file, the timeline and the display."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace

from rlsys.guards.guards import Guards
from rlsys.guards.reward_failures import RewardFailureReporter
from rlsys.metrics.display import Display
from rlsys.metrics.step import Metrics, StageClock, episode_metrics, reward_metrics, rollout_metrics
from rlsys.orchestrator.batch import StepBatch
from rlsys.orchestrator.orchestrator import Orchestrator
from rlsys.run_folder.metrics import MetricsWriter
from rlsys.run_folder.rollouts import RolloutWriter
from rlsys.runtime.memory_use import MemoryUse
from rlsys.runtime.timeline_collector import TimelineCollector
from rlsys.types import Experience, ScoredGroup, Update

logger = logging.getLogger(__name__)
# Keys in the row of every step; null where nothing was measured.
ALWAYS = ("policy/kl_ref", "sync/logprob_abs_diff/mean", "sync/logprob_abs_diff/p999", "sync/k3")


class Recorder:
    """The one place that writes and shows a step, and passes its failures to the guards."""

    def __init__(
        self,
        clock: StageClock,
        orchestrator: Orchestrator,
        guards: Guards,
        memory: MemoryUse,
        *,
        log: MetricsWriter,
        rollouts: RolloutWriter,
        display: Display,
        timeline: TimelineCollector | None,
    ) -> None:
        self._clock = clock
        self._orchestrator = orchestrator
        self._guards = guards
        self._log = log
        self._rollouts = rollouts
        self._display = display
        self._timeline = timeline
        self._memory = memory
        self._failures = RewardFailureReporter()
        self._open: tuple[int, StepBatch, Experience] | None = None  # the step that is being trained

    def record_start(self, evaluation: Metrics) -> None:
        """Record the state before training as step 0."""
        self._guards.progress.look(0, evaluation)
        self._write({"step": 0, "policy_version": 0, **evaluation})

    def begin(self, step: int, batch: StepBatch, experience: Experience) -> None:
        """Keep what a step trains, until it is recorded."""
        self._open = (step, batch, experience)

    async def record_cut_off(self, step: int, update: Update) -> None:
        """Record a step that was trained, and whose broadcast, evaluation or record the end of the run cut off."""
        if self._open is not None and self._open[0] == step:
            await self.record(*self._open, update, {}, {})

    async def record(
        self,
        step: int,
        batch: StepBatch,
        experience: Experience,
        update: Update,
        broadcast: Metrics,
        evaluation: Metrics,
    ) -> None:
        """Record one finished step."""
        in_batch = [replace(one, group=batch.trained[one.group]) for one in update.nonfinite]
        nonfinite = batch.nonfinite() or in_batch
        metrics: Metrics = dict.fromkeys(ALWAYS)
        metrics |= {"step": step, "policy_version": step}
        metrics |= rollout_metrics([group.rollout for group in batch.groups], batch.policy_version)
        metrics |= episode_metrics([group.rollout for group in batch.groups]) | reward_metrics(batch.rewards)
        # The learner's logprob differences on trained tokens replace those of the canary's text, so they come last.
        metrics |= batch.metrics() | broadcast | {**experience.metrics} | {**update.metrics}
        for stage, seconds in batch.stage_s.items():
            self._clock.add(stage, seconds)
        metrics |= self._clock.metrics(without_s=evaluation.get("time/eval_s") or 0.0) | self._orchestrator.metrics()
        metrics |= await self._guards.nonfinite.record(step, nonfinite, batch.groups)
        if batch.groups:
            metrics |= self._guards.rewards.record(step, batch.missing_rewards())
        self._guards.progress.look(step, evaluation)
        self._failures.report(step, batch.rewards)
        tokens, step_s = metrics["rollout/tokens"], metrics["time/step_s"]
        if tokens is not None and step_s:
            metrics["throughput/tokens_per_s"] = tokens / step_s
        metrics |= {**self._memory.metrics()}
        self._warn(batch.groups, metrics)
        await self._rollouts.write(step, batch.groups, batch.trained, experience)
        self._write(metrics | evaluation)
        self._open = None
        if self._timeline is not None:
            self._timeline.collect()

    async def finish(self) -> None:
        """Write the remaining spans to the timeline."""
        if self._timeline is not None:
            await self._timeline.finish()

    def _warn(self, groups: Sequence[ScoredGroup], metrics: Metrics) -> None:
        """Report new alarms in the log and the run's folder, and in the display while they hold."""
        new = self._guards.alarms.look(groups, metrics)
        for alarm in new:
            logger.warning("step %d: %s", alarm.step, alarm.text)
        self._log.write_warnings(asdict(alarm) for alarm in new)
        self._display.warn([alarm.text for alarm in self._guards.alarms.active])

    def _write(self, metrics: Metrics) -> None:
        self._log.write(metrics)
        self._display.step(metrics)
