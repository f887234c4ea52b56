"""`rlsys scale RUN rollout=N`: another number of engines for a run that goes on."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from rlsys.config.paths import expand
from rlsys.errors import ConfigError, RlsysError
from rlsys.run_folder.folder import RunFolder
from rlsys.run_folder.lock import is_held
from rlsys.run_folder.scale_requests import ASKED, DONE, REFUSED, ScaleRequest, ScaleRequests, read

POLL_S = 0.5
DESCRIPTION = """\
Change the number of engines of a run while it goes on:

  rlsys scale runs/mine rollout=4

Engines that join get the policy and are compared with the learner before they sample. Engines that leave finish what
they sample. The command waits until it is done, and shows what is going on. If an engine cannot join, the run goes on
with those it had.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run and the number."""
    parser.description = DESCRIPTION
    parser.add_argument("folder", type=expand, metavar="RUN", help="folder of a run that goes on")
    parser.add_argument("size", metavar="rollout=N", help="number of engines, at least 1")


def run(options: argparse.Namespace) -> None:
    """Ask the run, and print what it answers. Raise RlsysError when it has as many engines as before."""
    scale(options.folder, number_of(options.size), print)


def number_of(size: str) -> int:
    """Return N of `rollout=N`. Raises ConfigError for anything else."""
    role, _, text = size.partition("=")
    if role != "rollout":
        raise ConfigError(
            f"{size}: only rollout=N can change while a run goes on, as rollout=4; other numbers and options are fixed "
            "until the run is started again with resume=auto"
        )
    if not (text.isdecimal() and int(text) >= 1):
        raise ConfigError(f"{size}: give the number of engines, at least 1, as rollout=4")
    return int(text)


def scale(path: Path, rollout: int, show: Callable[[str], object]) -> None:
    """Ask the run at `path` for `rollout` engines, and wait; `show` gets what is going on, and the result.

    Raises:
        RlsysError: nothing goes on in that folder, or it ended meanwhile; the run refuses, or an engine could not join;
            the run does not answer.
    """
    folder = RunFolder.open(path)
    if not is_held(folder.path):
        raise RlsysError(f"{folder.path}: no run goes on in this folder. Start it with rollout.num_workers={rollout}")
    config = folder.config()
    file = ScaleRequests(folder.path).ask(rollout)
    try:
        # More than a run may take for one part: to have room for an engine and start it, or for its last responses.
        deadline_s = 2 * config.cluster.startup_deadline_s + config.rollout_deadline_s
        answer = _wait(folder.path, file, show, deadline_s)
    finally:
        file.unlink(missing_ok=True)  # a run that has not taken it yet will not
    if answer.state == REFUSED:
        raise RlsysError(f"{folder.path}: {answer.text}")


def _wait(run_dir: Path, file: Path, show: Callable[[str], object], deadline_s: float) -> ScaleRequest:
    """Return the request once there is a result, which is shown; raise RlsysError when none comes."""
    shown, changed = "", time.monotonic()
    while True:
        goes_on = is_held(run_dir)  # before the file is read: the answer may be the last that the run did
        request = read(file)
        if request is None or not (goes_on or request.state in (DONE, REFUSED)):
            raise RlsysError(
                f"{run_dir}: the run has ended or was started again meanwhile, and did not say what it did"
            )
        if request.text != shown and request.state != REFUSED:
            shown, changed = request.text, time.monotonic()
            show(shown)
        if request.state in (DONE, REFUSED):
            return request
        if time.monotonic() - changed > deadline_s:
            state = "does not answer" if request.state == ASKED else f"has been at this for too long: {shown}"
            raise RlsysError(f"{run_dir}: for {deadline_s:g} s the run {state}. See logs/driver.log in its folder")
        time.sleep(POLL_S)
