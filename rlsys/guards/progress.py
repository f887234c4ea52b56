"""The best evaluation so far: what `checkpoint.keep_best` keeps, and what `train.stop` ends the run by."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.metrics.step import Metrics
from rlsys.run_folder.checkpoint import RunState, checkpoint_path, damage_of

logger = logging.getLogger(__name__)


@dataclass
class Best:
    """The best value of one metric; lower is better for a metric that is given as `-NAME`."""

    metric: str | None
    threshold: float = 0.0  # only more than this is better
    value: float | None = None
    step: int = 0
    since: int = 0  # evaluations in a row that were not better

    @classmethod
    def restored(cls, metric: str | None, threshold: float, saved: dict[str, Any] | None) -> Best:
        """Return where a checkpoint left it, or a new one for another metric than then."""
        if saved is None or saved["metric"] != metric:
            return cls(metric, threshold)
        return cls(**{**saved, "threshold": threshold})

    @property
    def name(self) -> str:
        """The metric's name, without the sign for lower is better."""
        return (self.metric or "").removeprefix("-")

    def look(self, step: int, evaluation: Metrics) -> bool:
        """Return whether an evaluation is the best so far; one without a value of the metric is not counted."""
        value = evaluation.get(self.name)
        if value is None or not math.isfinite(value):
            return False
        gain = math.inf if self.value is None else value - self.value
        if self.value is not None and (self.metric or "").startswith("-"):
            gain = -gain
        if gain <= self.threshold:
            self.since += 1
            return False
        self.value, self.step, self.since = value, step, 0
        return True


class Progress:
    """Two bests: the one whose checkpoint is kept, and the one whose age ends the run in order."""

    def __init__(self, kept: Best, awaited: Best, patience: int) -> None:
        self.kept = kept
        self._awaited = awaited
        self._patience = patience

    @classmethod
    def from_config(cls, config: Config, run_dir: Path, state: RunState) -> Progress:
        """Return a run's progress, from where a checkpoint's `state` left it."""
        stop, saved = config.train.stop, state.progress
        kept = Best.restored(config.checkpoint.keep_best, 0.0, saved.get("kept"))
        if kept.step:
            folder = checkpoint_path(run_dir, kept.step)
            if (damage := damage_of(folder, content=False)) is not None:
                logger.warning("the best checkpoint, %s, is lost: %s; the next evaluation counts anew", folder, damage)
                kept = Best(kept.metric)
        progress = cls(kept, Best.restored(stop.metric, stop.threshold, saved.get("awaited")), stop.patience)
        if progress.is_over:
            logger.warning("the run was ended by train.stop: raise train.stop.patience, or set train.stop.metric=null")
        return progress

    @property
    def is_over(self) -> bool:
        """Whether the run ends: nothing was better for `train.stop.patience` evaluations."""
        return self._awaited.metric is not None and self._awaited.since >= self._patience

    def state(self) -> dict[str, dict[str, Any]]:
        """Return what a checkpoint holds of it."""
        return {"kept": asdict(self.kept), "awaited": asdict(self._awaited)}

    def look(self, step: int, evaluation: Metrics) -> None:
        """Count the evaluation after a step; an empty one, where none was due, is not counted.

        Raises:
            ConfigError: the evaluation before training lacks a metric that is named.
        """
        if step == 0 and evaluation:
            for best in (self.kept, self._awaited):
                if best.metric is not None and best.name not in evaluation:
                    names = ", ".join(sorted(evaluation))
                    raise ConfigError(f"the evaluations have no metric '{best.name}': name one of {names}")
        if step > 0 and self.kept.look(step, evaluation):  # before training there is no checkpoint
            logger.info("step %d is the best so far: %s %.4g", step, self.kept.name, self.kept.value)
        self._awaited.look(step, evaluation)
        if self.is_over:
            logger.warning(
                "the run ends after step %d: %s was not better than %.4g, of step %d, in %d evaluations (train.stop)",
                step,
                self._awaited.name,
                self._awaited.value,
                self._awaited.step,
                self._awaited.since,
            )
