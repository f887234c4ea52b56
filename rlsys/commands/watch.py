"""`rlsys watch RUN`: the display of a run that was started elsewhere, until it ends."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlsys.commands.report.facts import duration
from rlsys.config.paths import expanded
from rlsys.errors import DataError, RlsysError
from rlsys.metrics.display import Display
from rlsys.metrics.step import Metrics
from rlsys.run_folder.reading import existing_folder, finite, read_config

POLL_S = 0.5
QUIET_S = 300.0
"""After so long without a step the watcher wonders aloud, once."""


class Follower:
    """The rows of a `metrics.jsonl` that grows, and that a resumed run cuts back to its checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._lines: dict[int, bytes] = {}  # of each step, as last seen

    def rows(self) -> list[Metrics]:
        """What is there and was not at the last call. Raises DataError for a line that is no row."""
        rows = []
        for line in self._lines_behind():
            row = self._parsed(line)
            step = int(row["step"] or 0)
            if self._lines.get(step) != line:
                self._lines[step] = line
                rows.append(row)
        return rows

    def _lines_behind(self) -> list[bytes]:
        """Whole lines after the last one read; from the start where the file has become shorter."""
        if not self._path.is_file():
            self._offset = 0
            return []
        with self._path.open("rb") as file:
            if self._path.stat().st_size < self._offset:
                self._offset = 0
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()

    def _parsed(self, line: bytes) -> Metrics:
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise DataError(f"{self._path}: not JSON ({error}): {line[:80]!r}") from error
        if not isinstance(row, dict) or finite(row.get("step")) is None:
            raise DataError(f"{self._path}: a line without a number under 'step': {line[:80]!r}")
        return {key: finite(value) for key, value in row.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run to show."""
    parser.description = "Show the display of a run that was started elsewhere, until it ends."
    parser.add_argument("folder", type=expanded, metavar="RUN", help="folder of a run")
    parser.add_argument("--once", action="store_true", help="show the steps so far and end")


def run(options: argparse.Namespace) -> None:
    """Show every step of a run as it ends; Ctrl-C stops watching, not the run."""
    run_dir = existing_folder(options.folder)
    num_steps = _num_steps(run_dir)
    display = Display(num_steps)
    try:
        with display:
            _follow(run_dir, num_steps, display, once=options.once)
    except KeyboardInterrupt:
        display.say("no longer watching; the run goes on")


def _follow(run_dir: Path, num_steps: int, display: Display, *, once: bool) -> None:
    metrics = run_dir / "metrics.jsonl"
    follower = Follower(metrics)
    rows = follower.rows()
    heard = metrics.stat().st_mtime if rows else time.time()
    for row, end in zip(rows, end_times(rows, heard), strict=True):
        display.step(row, at=end)
    step = int(rows[-1]["step"] or 0) if rows else None
    display.say(_stand(run_dir, step, num_steps, time.time() - heard))
    is_quiet = False
    while not once and (step is None or step < num_steps):
        time.sleep(POLL_S)
        for row in follower.rows():
            heard, is_quiet = time.time(), False
            step = int(row["step"] or 0)
            display.step(row, at=heard)
        if not is_quiet and time.time() - heard > QUIET_S:
            is_quiet = True
            display.say(f"no step for {duration(time.time() - heard)}: is the run still going?")
    if not once:
        display.say(f"{run_dir}: all {num_steps} steps are done")


def end_times(rows: Sequence[Metrics], last: float) -> list[float]:
    """When each step ended, in seconds, the last one at `last`: by what the steps after it took."""
    ends = [last]
    for row in reversed(rows[1:]):
        ends.append(ends[-1] - sum(row.get(key) or 0.0 for key in ("time/step_s", "time/eval_s")))
    return ends[::-1][len(ends) - len(rows) :]


def _stand(run_dir: Path, step: int | None, num_steps: int, ago_s: float) -> str:
    if step is None:
        return f"{run_dir}: no step has ended yet, of {num_steps}"
    return f"{run_dir}: step {step} of {num_steps} ended {duration(ago_s)} ago"


def _num_steps(run_dir: Path) -> int:
    config = read_config(run_dir)
    if not config:
        raise RlsysError(f"{run_dir / 'config.yaml'} is missing: is this the folder of a run?")
    train = config.get("train")
    num_steps = finite(train.get("num_steps")) if isinstance(train, dict) else None
    if num_steps is None:
        raise RlsysError(f"{run_dir / 'config.yaml'} does not say how many steps the run has (train.num_steps)")
    return int(num_steps)
