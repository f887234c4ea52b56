"""A campaign of faults against a run: one after the other, each at a random moment, until the run has recovered."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.faults import FAULTS
from tests.chaos.job import Job
from tests.chaos.ledger import audit

RECOVERY_S = 240.0  # after this the run has not survived
POLL_S = 0.2
LAST_STEPS = 6
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


def run_campaign(
    folder: Path, kinds: Sequence[str], rng: random.Random, told: Callable[[Outcome], None] = lambda _: None
) -> dict[str, Any]:
    """Start a run, cause the faults, end the run in order, and return the report.

    Args:
        folder: an empty one.
        kinds: names in `FAULTS`, in order.
        rng: chooses victims, moments and numbers of workers.
        told: hears of each outcome.
    """
    job, started = Job(folder), time.monotonic()
    try:
        job.start(ENDLESS)
        outcomes = []
        for outcome in play(job, kinds, rng):
            told(outcome)
            outcomes.append(outcome)
        job.signal(signal.SIGTERM)
        job.wait(RECOVERY_S)
        wait_for_nobody(job, RECOVERY_S)
        job.start(f"train.num_steps={job.rows()[-1]['step'] + LAST_STEPS}")
        if job.wait(RECOVERY_S) != 0:
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
    fault, before, started = FAULTS[kind], job.rows(), time.monotonic()
    victim = fault.cause(job, rng)
    if fault.ends_job and not fault.is_planned:
        wait_for_nobody(job, RECOVERY_S)
    if fault.ends_job:
        job.start(ENDLESS)
    outcome = Outcome(kind, victim, before[-1]["step"], fault.is_planned)
    while time.monotonic() < started + RECOVERY_S and job.exit_code is None:
        rows = job.rows()
        # A row of before is there until a resume has set it aside, and may come again word for word but for times.
        if rows and rows[-1] not in before and _is_whole(job, rows[-1]):
            resumed = next((row["step"] for row in rows if row not in before), 0)
            outcome.lost_steps = max(0, before[-1]["step"] + 1 - resumed)
            outcome.survived, outcome.recovered_s = True, round(time.monotonic() - started, 1)
            return outcome
        time.sleep(POLL_S)
    if job.exit_code is None:
        job.close()
    wait_for_nobody(job, RECOVERY_S)
    job.start(ENDLESS)  # so that the others are tried too
    wait_for_step(job, 1)
    return outcome


def _is_whole(job: Job, row: dict[str, Any]) -> bool:
    is_serving = bool(row["schedule/engines"] == job.workers["rollout"])
    return is_serving and not (job.folder / "hang").exists() and job.is_complete()


def wait_for_step(job: Job, step: int, deadline_s: float = 300.0) -> None:
    """Wait until a step is trained and everybody works."""
    end = time.monotonic() + deadline_s
    while not ((rows := job.rows()) and rows[-1]["step"] >= step and _is_whole(job, rows[-1])):
        if job.exit_code is not None or time.monotonic() > end:
            raise AssertionError(f"the run did not come to step {step}:\n{job.log()}")
        time.sleep(POLL_S)


def wait_for_nobody(job: Job, deadline_s: float) -> None:
    """Wait until no process of the run is left."""
    end = time.monotonic() + deadline_s
    while job.processes():
        if time.monotonic() > end:
            raise AssertionError(f"processes are left: {job.processes()}\n{job.log()}")
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
        "recovery_max_s": max(seconds, default=None),
        "steps_trained_again": sum(outcome.lost_steps for outcome in crashes),
        "steps_trained_again_planned": sum(outcome.lost_steps for outcome in outcomes if outcome.is_planned),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
