"""`rlsys watch RUN`: the display of a run that was started elsewhere, until it ends."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from rlsys.config.paths import expand
from rlsys.errors import RlsysError
from rlsys.metrics.display import Display
from rlsys.metrics.formatting import duration, finite
from rlsys.metrics.step import Metrics
from rlsys.run_folder.folder import RunFolder
from rlsys.run_folder.jsonl import MetricsFollower

logger = logging.getLogger(__name__)
POLL_S = 0.5
QUIET_S = 300.0  # without a step for this long, the watcher asks once whether the run is still going


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run to show."""
    parser.description = "Show the display of a run that was started elsewhere, until it ends."
    parser.add_argument("folder", type=expand, metavar="RUN", help="folder of a run")
    parser.add_argument("--once", action="store_true", help="show the steps so far and end")


def run(options: argparse.Namespace) -> None:
    """Show every step of a run as it ends; Ctrl-C stops watching, not the run."""
    run = RunFolder.open(options.folder)
    num_steps = _num_steps(run)
    display = Display(num_steps)
    try:
        with display:
            _follow(run, num_steps, display, once=options.once)
    except KeyboardInterrupt:
        logger.info("stopped watching; the run continues")


def _follow(run: RunFolder, num_steps: int, display: Display, *, once: bool) -> None:
    follower = MetricsFollower(run.metrics_file)
    rows = follower.rows()
    # Rows hold no time of day: that of the last one is when the file was written.
    last_row_at = run.metrics_file.stat().st_mtime if rows else time.time()
    for row, end in zip(rows, end_times(rows, last_row_at), strict=True):
        display.step(row, at=end)
    warned: set[tuple[int, str]] = set()
    _log_warnings(run, warned)
    step = int(rows[-1]["step"] or 0) if rows else None
    logger.info("%s", _status(run.path, step, num_steps, time.time() - last_row_at))
    is_quiet, is_paused = False, _log_pause(run, known=False)
    while not once and (step is None or step < num_steps):
        time.sleep(POLL_S)
        for row in follower.rows():
            last_row_at, is_quiet = time.time(), False
            step = int(row["step"] or 0)
            display.step(row, at=last_row_at)
            _log_warnings(run, warned)
        is_paused = _log_pause(run, known=is_paused)
        if not (is_quiet or is_paused) and time.time() - last_row_at > QUIET_S:
            is_quiet = True
            logger.info("no step for %s: is the run still going?", duration(time.time() - last_row_at))
    if not once:
        logger.info("%s: all %d steps are done", run.path, num_steps)


def _log_warnings(run: RunFolder, known: set[tuple[int, str]]) -> None:
    """Show warnings of the run that are not `known`, and add them to it."""
    for step, text in run.warnings:
        if (step, text) not in known:
            known.add((step, text))
            logger.warning("step %d: %s", step, text)


def _log_pause(run: RunFolder, *, known: bool) -> bool:
    """Return whether the run is paused; say so, with the reason, unless that is known."""
    file = run.paused_file
    if not file.is_file():
        return False
    if not known:
        why = file.read_text(encoding="utf-8").strip()
        logger.warning("the run is paused, until %s is removed%s", file, f": {why}" if why else "")
    return True


def end_times(rows: Sequence[Metrics], last: float) -> list[float]:
    """Return when each step ended, in seconds, from the durations of the steps after it.

    Args:
        rows: the metrics of each step, in order.
        last: when the last step ended.
    """
    ends = [last]
    for row in reversed(rows[1:]):
        ends.append(ends[-1] - sum(row.get(key) or 0.0 for key in ("time/step_s", "time/eval_s")))
    return ends[::-1][len(ends) - len(rows) :]


def _status(run_dir: Path, step: int | None, num_steps: int, ago_s: float) -> str:
    if step is None:
        return f"{run_dir}: no step of {num_steps} has ended yet"
    return f"{run_dir}: step {step} of {num_steps} ended {duration(ago_s)} ago"


def _num_steps(run: RunFolder) -> int:
    """Return how many steps the run has in all. Raises RlsysError if its configuration does not have the number."""
    file = run.config_file
    if not run.options:
        raise RlsysError(f"{file} is missing: give the folder of a run, the one that holds its config.yaml")
    train = run.options.get("train")
    num_steps = finite(train.get("num_steps")) if isinstance(train, dict) else None
    if num_steps is None:
        raise RlsysError(f"{file} does not hold the number of steps of the run (train.num_steps)")
    return int(num_steps)
