"""A campaign of faults against a run: one after the other, each at a random moment, until the run has recovered."""

from __future__ import annotations

import json
import math
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.faults import FAULTS
from tests.chaos.job import Job
from tests.chaos.ledger import audit

RECOVERY_S = 900.0  # after this the run has not survived; a busy machine is many times slower than a quiet one
POLL_S = 0.2
SLOW_S = 10.0
LAST_STEPS = 6
LEARNT_BY = 60  # steps after which the policy has learnt something for sure
ENDLESS = "train.num_steps=100000"


@dataclass
class Outcome:
    """What became of one fault."""

    kind: str
    victim: str
    step: int  # the newest step when it happened
    is_planned: bool
    survived: bool = False
    recovered_s: float = 0.0  # until all workers were there, a step was trained, and every engine served
    lost_steps: int = 0  # that were trained again
    imports: int = 0  # workers that have imported their libraries, which takes far longer than a fork


def run_campaign(
    folder: Path,
    kinds: Sequence[str],
    rng: random.Random,
    told: Callable[[Outcome], None] = lambda _: None,
    longest_s: float = math.inf,
) -> dict[str, Any]:
    """Start a run, cause the faults, end the run in order, and return the report.

    Args:
        folder: an empty one.
        kinds: names in `FAULTS`, in order.
        rng: chooses victims, moments and numbers of workers.
        told: hears of each outcome.
        longest_s: seconds after which no more faults are caused.
    """
    job, started = Job(folder), time.monotonic()
    try:
        job.start(ENDLESS)
        outcomes = []
        for outcome in play(job, kinds, rng):
            told(outcome)
            outcomes.append(outcome)
            if time.monotonic() - started > longest_s:
                break
        job.signal(signal.SIGTERM)
        job.wait(RECOVERY_S)
        wait_for_nobody(job, RECOVERY_S)
        job.start(f"train.num_steps={max(job.last_row()['step'] + LAST_STEPS, LEARNT_BY)}")
        if job.wait(3 * RECOVERY_S) != 0:
            raise AssertionError(f"the last part of the run failed:\n{job.log()}")
        wait_for_nobody(job, 30.0)
        left = sorted(str(path.relative_to(job.ray_folder)) for path in job.ray_folder.rglob("session_2*"))
        books = audit(job)
    finally:
        job.close()
    return {"seconds": round(time.monotonic() - started), **summary(outcomes), "left_by_ray": left, **books}


def choose(count: int, rng: random.Random) -> list[str]:
    """Return kinds of faults: every kind as often as any other, but for one, in random order."""
    kinds: list[str] = []
    while len(kinds) < count:
        kinds += rng.sample(list(FAULTS), len(FAULTS))
    return kinds[:count]


def play(job: Job, kinds: Sequence[str], rng: random.Random) -> Iterator[Outcome]:
    """Cause each fault a random moment after the run has recovered from the one before."""
    wait_for_step(job, 2)
    for kind in kinds:
        time.sleep(rng.uniform(0.0, 3.0))
        yield _fault(job, kind, rng)


def _fault(job: Job, kind: str, rng: random.Random) -> Outcome:
    fault, before, started = FAULTS[kind], set(job.lines()), time.monotonic()
    outcome = Outcome(kind, "", job.last_row()["step"], fault.is_planned)
    outcome.victim, pids = fault.cause(job, rng)
    if fault.ends_job:
        wait_for_nobody(job, RECOVERY_S)
        job.start(ENDLESS)
    known = None  # all rows when everybody was there again
    while time.monotonic() < started + RECOVERY_S and job.exit_code is None:
        if known is None and not pids <= job.processes().keys() and job.is_complete():
            known = set(job.lines())
        # Later a resume may set rows aside, and their steps come again.
        if known is not None and set(job.lines()[-1:]) - known and _is_whole(job):
            outcome.survived, outcome.recovered_s = True, round(time.monotonic() - started, 1)
            resumed = next(json.loads(line)["step"] for line in job.lines() if line not in before)
            outcome.lost_steps = max(0, outcome.step + 1 - resumed)
            outcome.imports = len(job.importing())
            return outcome
        time.sleep(POLL_S)
    print(f"{kind} was not survived: {job.processes()}\n{job.log()}", file=sys.stderr)
    job.end()
    job.start(ENDLESS)  # so that the others are tried too
    wait_for_step(job, 1)
    return outcome


def _is_whole(job: Job) -> bool:
    """Return whether every worker is there, and every engine served in the newest step."""
    return bool(job.last_row().get("schedule/engines") == job.workers["rollout"]) and job.is_complete()


def wait_for_step(job: Job, step: int, deadline_s: float = 300.0) -> None:
    """Wait until a step is trained and everybody works."""
    end = time.monotonic() + deadline_s
    while not (job.lines() and job.last_row()["step"] >= step and _is_whole(job)):
        if job.exit_code is not None or time.monotonic() > end:
            raise AssertionError(f"the run did not come to step {step}:\n{job.log()}")
        time.sleep(POLL_S)


def wait_for_nobody(job: Job, deadline_s: float) -> None:
    """Wait until no process of the run is left; say which are slow to end."""
    started, is_said = time.monotonic(), False
    while left := job.processes():
        waited = time.monotonic() - started
        if waited > deadline_s:
            raise AssertionError(f"processes are left: {left}\n{job.log()}")
        if waited > SLOW_S and not is_said:
            is_said = True
            print(f"still there after {SLOW_S:g} s: {[' '.join(job.command(pid)) for pid in left]}", file=sys.stderr)
        time.sleep(POLL_S)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return what a report shows of the faults."""
    crashes = [outcome for outcome in outcomes if not outcome.is_planned]
    seconds = [outcome.recovered_s for outcome in crashes if outcome.survived]
    return {
        "faults": len(outcomes),
        "survived": sum(outcome.survived for outcome in outcomes),
        "crashes": len(crashes),
        "planned_ends": len(outcomes) - len(crashes),
        "recovery_median_s": median(seconds) if seconds else None,
        "imports": sum(outcome.imports for outcome in outcomes),
        "recovery_max_s": max(seconds, default=None),
        "steps_trained_again": sum(outcome.lost_steps for outcome in crashes),
        "steps_trained_again_planned": sum(outcome.lost_steps for outcome in outcomes if outcome.is_planned),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
