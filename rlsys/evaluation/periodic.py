"""Evaluation during training: before the first step, every `eval.every` steps and after the last."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.config.schema import Config
from rlsys.evaluation.evaluate import eval_metrics, evaluate
from rlsys.guards.missing_rewards import MissingRewardGuard
from rlsys.metrics.step import Metrics, StageClock
from rlsys.orchestrator.sampling import GroupSampler
from rlsys.preflight.prepared import EvalSet


class PeriodicEvaluation:
    """Evaluations of the policy on the held-out prompts, whenever one is due."""

    def __init__(
        self, config: Config, eval_sets: Sequence[EvalSet], sampler: GroupSampler, guard: MissingRewardGuard
    ) -> None:
        self._config = config
        self._eval_sets = eval_sets
        self._sampler = sampler
        self._guard = guard

    async def evaluate(self, step: int) -> Metrics:
        """Return the metrics of an evaluation after `step`; empty when none is due.

        Raises:
            NoRewardError: before training a data set has no valid reward: its reward is broken, not down for a while.
        """
        every, is_last = self._config.eval.every, step == self._config.train.num_steps
        if every == 0 or not self._eval_sets or (step % every and not is_last):
            return {}
        clock = StageClock()
        with clock.stage("eval"):
            # Step s makes policy version s, so the engines serve version `step` now.
            results = await evaluate(self._sampler, self._eval_sets, self._config, step)
        if step == 0:
            results.all()
        counted = self._guard.record(step, "; ".join(results.lacking) or None)
        return counted | eval_metrics(results) | {"time/eval_s": clock.seconds["eval"]}
