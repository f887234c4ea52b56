"""The faults that a run is to survive: what is done to which of its processes."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.job import Job

# Does it, and says to whom, and which processes will not all be there afterwards.
Cause = Callable[[Job, random.Random], tuple[str, set[int]]]


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    cause: Cause
    ends_job: bool = False  # the run's own process ends by it, and is started again from outside
    is_planned: bool = False  # an orderly end, which may take its time to save


def _signal(role: str, number: signal.Signals) -> Cause:
    def cause(job: Job, rng: random.Random) -> tuple[str, set[int]]:
        pids = job.victims(role)
        place = rng.randrange(len(pids))
        os.kill(pids[place], number)
        return f"{role} {place + 1} of {len(pids)}", {pids[place]}

    return cause


def _all_engines(job: Job, _: random.Random) -> tuple[str, set[int]]:
    pids = job.victims("rollout")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return f"all {len(pids)} engines", set(pids)


def _hang(job: Job, _: random.Random) -> tuple[str, set[int]]:
    pids = job.victims("reward")
    (job.folder / "hang").touch()
    return "the next call of the reward function", set(pids)


def _end(number: signal.Signals) -> Cause:
    def cause(job: Job, rng: random.Random) -> tuple[str, set[int]]:
        job.signal(number)
        job.wait(deadline_s=180)
        before = dict(job.workers)
        job.workers = {role: rng.choice((1, 2)) for role in before}
        return f"the driver; workers then {_counts(before)} -> {_counts(job.workers)}", {-1}

    return cause


def _counts(workers: dict[str, int]) -> str:
    return "+".join(map(str, workers.values()))


FAULTS = {
    "engine killed": Fault(_signal("rollout", signal.SIGKILL)),
    "engine stopped": Fault(_signal("rollout", signal.SIGSTOP)),
    "all engines killed": Fault(_all_engines),
    "scoring worker killed": Fault(_signal("scoring", signal.SIGKILL)),
    "reward process killed": Fault(_signal("reward", signal.SIGKILL)),
    "reward process stopped": Fault(_signal("reward", signal.SIGSTOP)),
    "reward hangs": Fault(_hang),
    "reference killed": Fault(_signal("reference", signal.SIGKILL)),
    "reference stopped": Fault(_signal("reference", signal.SIGSTOP)),
    "learner rank killed": Fault(_signal("learner", signal.SIGKILL)),
    "learner rank stopped": Fault(_signal("learner", signal.SIGSTOP)),
    "raylet killed": Fault(_signal("raylet", signal.SIGKILL)),
    "Ray's head killed": Fault(_signal("gcs_server", signal.SIGKILL)),
    "driver killed": Fault(_end(signal.SIGKILL), ends_job=True),
    "driver interrupted": Fault(_end(signal.SIGINT), ends_job=True, is_planned=True),
    "driver ended": Fault(_end(signal.SIGTERM), ends_job=True, is_planned=True),
}
