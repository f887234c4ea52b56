"""The writer of a run's numbers: `metrics.jsonl`, and the trackers that follow it."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlsys.config.schema import LoggingConfig
from rlsys.metrics.formatting import as_json
from rlsys.metrics.step import Metrics
from rlsys.metrics.trackers import TrackedRun
from rlsys.metrics.trackers.threads import Trackers
from rlsys.run_folder.checkpoint import step_of
from rlsys.run_folder.jsonl import row_writer
from rlsys.run_folder.layout import METRICS, ROLLOUTS, TRACKER_ID, WARNINGS, WRITTEN
from rlsys.run_folder.whole_file import write_whole


class MetricsWriter:
    """The writer of each step's row, which is in the file when `write` returns. Trackers follow in the background."""

    def __init__(
        self,
        run_dir: Path,
        config: LoggingConfig,
        *,
        resume_step: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the files, and drop what an earlier start wrote after the checkpoint.

        Args:
            run_dir: the run's folder; it is made if it does not exist.
            config: which trackers follow.
            resume_step: the step of the checkpoint that the run continues from; 0 for a new run.
            settings: the run's configuration, for trackers to keep.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS
        self._warnings = run_dir / WARNINGS
        _drop_rows_after(path, resume_step)
        _drop_rows_after(self._warnings, resume_step)
        _drop_rollouts_after(run_dir, resume_step)
        self._file = path.open("a", encoding="utf-8")
        run_id = tracker_id(run_dir) if config.trackers else ""
        self._trackers = Trackers(config.trackers, TrackedRun(run_dir, settings or {}, resume_step, run_id))

    def write(self, metrics: Metrics) -> None:
        """Append one step's row to `metrics.jsonl` and hand it to the trackers."""
        row = {**metrics, **self._trackers.dropped()}
        self._file.write(as_json(row) + "\n")
        self._file.flush()
        self._trackers.write(int(metrics["step"] or 0), row)

    def write_warnings(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append warnings to `warnings.jsonl`, which a run without any does not have."""
        rows = list(rows)
        if rows:
            with row_writer(self._warnings, mode="a") as write_rows:
                write_rows(rows)

    def close(self) -> None:
        """Close the file and every tracker; a tracker that hangs is abandoned after a few seconds."""
        self._file.close()
        self._trackers.close()


def tracker_id(run_dir: Path) -> str:
    """Return twelve letters and digits, the same each time the run in this folder is resumed."""
    path = run_dir / TRACKER_ID
    if not path.exists():
        write_whole(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8").strip()


def set_aside(run_dir: Path) -> Path | None:
    """Move what an earlier start wrote into `earlier-N/` and return that folder; None if there was nothing."""
    written = [path for path in run_dir.glob("*") if path.name.startswith(WRITTEN)]
    if not written:
        return None
    numbers = itertools.count(1)
    folder = next(folder for n in numbers if not (folder := run_dir / f"earlier-{n}").exists())
    folder.mkdir()
    for path in written:
        path.rename(folder / path.name)
    return folder


def _drop_rows_after(path: Path, step: int) -> None:
    """Remove the rows of the steps that a resumed run will write again, and a row that was cut off."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    write_whole(path, "".join(f"{line}\n" for line in kept))


def _drop_rollouts_after(run_dir: Path, step: int) -> None:
    """Remove the rollouts of the steps that a resumed run will run again.

    They would stay beside metrics of another try, and for good if rollouts are written less often now.
    """
    for path in (run_dir / ROLLOUTS).glob("step-*.jsonl"):
        if step_of(path) > step:
            path.unlink()
