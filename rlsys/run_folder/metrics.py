"""The numbers in a run's folder: `metrics.jsonl`, and what its trackers put there."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlsys.config.schema import LoggingConfig
from rlsys.metrics.row import as_json
from rlsys.metrics.step import Metrics
from rlsys.metrics.trackers import Start
from rlsys.metrics.trackers.threads import Trackers

logger = logging.getLogger(__name__)
WRITTEN = ("metrics.jsonl", "rollouts", "nonfinite", "timeline", "events.out.", "wandb", "tracker_id")
"""How the names begin of what a run writes besides its checkpoints and configuration."""


class RunLog:
    """Writes as the run goes; every line is on disk when the call returns. Trackers follow in the background."""

    def __init__(
        self,
        run_dir: Path,
        config: LoggingConfig,
        *,
        resume_step: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`settings` is the run's configuration, for trackers to keep."""
        self._run_dir = run_dir
        self._config = config
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / "metrics.jsonl"
        _drop_after(path, resume_step)
        _drop_rollouts_after(run_dir, resume_step)
        self._metrics = path.open("a", encoding="utf-8")
        self._trackers = Trackers(config.trackers, Start(run_dir, settings or {}, resume_step, logger.info))

    def write(self, metrics: Metrics) -> None:
        """One object for one step, in `metrics.jsonl` and to the trackers."""
        row = {**metrics, **self._trackers.dropped()}
        self._metrics.write(as_json(row) + "\n")
        self._metrics.flush()
        self._trackers.write(int(metrics["step"] or 0), row)

    def close(self) -> None:
        """Close every file and tracker; a tracker that hangs is left behind after a few seconds."""
        self._metrics.close()
        self._trackers.close()


def set_aside(run_dir: Path) -> Path | None:
    """Move what an earlier start wrote into `earlier-N/`; None when there is nothing. Nothing is lost."""
    written = [path for path in run_dir.glob("*") if path.name.startswith(WRITTEN)]
    if not written:
        return None
    numbers = itertools.count(1)
    folder = next(folder for n in numbers if not (folder := run_dir / f"earlier-{n}").exists())
    folder.mkdir()
    for path in written:
        path.rename(folder / path.name)
    return folder


def _drop_after(path: Path, step: int) -> None:
    """A resumed run writes the steps after its checkpoint again: their old lines go."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _drop_rollouts_after(run_dir: Path, step: int) -> None:
    """The same of rollouts, which would stand beside other metrics, for good where fewer are written now."""
    for path in (run_dir / "rollouts").glob("step-*.jsonl"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
