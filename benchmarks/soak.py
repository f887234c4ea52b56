"""A long run under faults: whether memory, processes, files, sockets and speed stay as they are.

python -m benchmarks.soak [--steps 2000] [--every 50] [--seed 0] [--write]

The small run of `tests/chaos` trains, and every `--every` steps one of its workers is killed: in the first half in turn
an engine, a scoring worker, a reward function's process and a reference worker, in the second always the newest engine,
so that the others live long enough to be measured; driver and learner live through all of it. Every few seconds the
memory of each process (anonymous pages), its open files and sockets, and what lies in /dev/shm are read. Engines keep
few of oneDNN's kernels, so that only memory that is lost grows.
A process's growth is the slope of its memory over the steps of its life, without the first `WARM_UP` of them.
It ends with 1 unless memory stayed flat, steps as fast, and nothing was lost or left.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from benchmarks import report
from benchmarks.side import end_on_sigterm
from rlsys.runtime.memory_use import own_bytes
from tests.chaos.campaign import ENDLESS, RECOVERY_S, wait_for_nobody, wait_for_step
from tests.chaos.faults import FAULTS
from tests.chaos.job import Job
from tests.chaos.ledger import audit

KINDS = ("engine killed", "scoring worker killed", "reward process killed", "reference killed")
WARM_UP = 300  # steps after which a process has its caches and pools
SHORTEST = 200  # steps over which a slope is taken
EVERY_S = 3.0
MAX_GROWTH = 1.0  # MB per 100 steps
# oneDNN keeps a compiled kernel for every shape of a matrix, 1,024 at most: an engine grows by 3 to 7 MB per 100 steps
# until it has them (docs/limits.md), which would hide what is never given back.
FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
# The last tenth's time per step over the first's, each divided by the time of the same work done beside it: on a shared
# host everything may be slower for a while.
MAX_SLOWER = 1.05
PROBE = bytes(2**23)  # hashing it takes some ms


def main() -> None:
    """Train, hurt, look, and report."""
    end_on_sigterm()
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="steps between two faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/soak.json")
    options = parser.parse_args()
    header = report.header("benchmarks.soak")
    os.environ |= FEW_KERNELS
    with tempfile.TemporaryDirectory(prefix="rlsys-soak-") as folder:
        found = soak(Path(folder), options.steps, options.every, random.Random(options.seed))
    shown = report.table("growth, MB per 100 steps", ["process", "steps", "MB at the end", "growth"])
    for life in found["lives"]:
        shown.add_row(life["role"], str(life["steps"]), *(report.number(life[key]) for key in ("last_mb", "growth")))
    report.show(shown)
    print({name: value for name, value in found.items() if name not in ("lives", "curves")})
    if options.write:
        print(f"written: {report.write('soak', {**header, **found})}")
    sys.exit(0 if _is_good(found) else 1)


def _is_good(found: dict[str, Any]) -> bool:
    books = found["books"]
    lost = [books[name] for name in ("prompts_lost", "trained_twice", "missing_of_steps", "trained_too_old")]
    return found["is_flat"] and found["is_as_fast"] and not found["left_in_shared_memory"] and not any(lost)


def soak(folder: Path, steps: int, every: int, rng: random.Random) -> dict[str, Any]:
    """Train `steps` steps, with a fault every `every`, and return what was seen."""
    job, shared_before = Job(folder), _shared()
    try:
        job.start(ENDLESS)
        wait_for_step(job, 2)
        samples, faults = _watch(job, steps, every, rng)
        job.signal(signal.SIGTERM)
        job.wait(RECOVERY_S)
        wait_for_nobody(job, 60.0)
        rows = [json.loads(line) for line in job.lines()]
        books = audit(job)
    finally:
        job.close()
    lives = _lives(samples)
    max_growth = max((life["growth"] for life in lives), default=0.0)
    return {
        "steps": rows[-1]["step"],
        "faults": faults,
        "max_growth": max_growth,
        "is_flat": max_growth <= MAX_GROWTH,
        **_speed([row["time/step_s"] for row in rows[1:]], samples),
        "counts_first": samples[1]["counts"],
        "counts_last": samples[-1]["counts"],
        "left_in_shared_memory": sorted(_shared() - shared_before),
        "books": books,
        "lives": lives,
        "curves": _curves(samples),
    }


def _watch(job: Job, steps: int, every: int, rng: random.Random) -> tuple[list[dict[str, Any]], int]:
    """Sample until the last step; cause a fault whenever the next is due and everybody is there."""
    samples, faults, all_kinds = [], 0, itertools.cycle(KINDS)
    while (step := job.last_row()["step"]) < steps:
        if job.exit_code is not None:
            raise RuntimeError(f"the run ended at step {step}:\n{job.log()}")
        is_whole = job.is_complete()
        if is_whole:
            samples.append({"step": step, "probe_s": _probe(), **_sample(job)})
        if is_whole and step >= (faults + 1) * every:
            if step < steps / 2:
                FAULTS[next(all_kinds)].cause(job, rng)
            else:
                os.kill(job.victims("rollout")[-1], signal.SIGKILL)
            faults += 1
        time.sleep(EVERY_S)
    return samples, faults


def _probe() -> float:
    """Return the seconds that a fixed piece of work takes now, beside the run."""
    began = time.perf_counter()
    hashlib.sha256(PROBE).digest()
    return time.perf_counter() - began


def _speed(times: list[float], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the tenths of the run, by the seconds of its steps and of the probes that were taken meanwhile."""
    step_s, probe_s = [], []
    for tenth in range(10):
        begin, end = tenth * len(times) // 10, (tenth + 1) * len(times) // 10
        step_s.append(median(times[begin:end]))
        probe_s.append(median(sample["probe_s"] for sample in samples if begin <= sample["step"] < end))
    slower, machine_slower = step_s[-1] / step_s[0], probe_s[-1] / probe_s[0]
    return {
        "step_s_of_tenths": step_s,
        "probe_s_of_tenths": probe_s,
        "slower": slower,
        "machine_slower": machine_slower,
        "slower_than_machine": slower / machine_slower,
        "is_as_fast": slower / machine_slower <= MAX_SLOWER,
    }


def _sample(job: Job) -> dict[str, Any]:
    """Return the memory of every process, and how many files and sockets those have that live through the run."""
    roles = {pid: role or "other" for pid, role in job.processes().items()} | {job.pid: "driver"}
    counts: dict[str, int] = {"processes": len(roles), "shared memory": len(_shared())}
    for pid in [job.pid, *job.victims("learner")]:
        with contextlib.suppress(psutil.Error):
            process, role = psutil.Process(pid), roles.get(pid, "learner")
            counts[f"files of {role} {pid}"] = process.num_fds()
            counts[f"sockets of {role} {pid}"] = len(process.net_connections("all"))
            counts[f"threads of {role} {pid}"] = process.num_threads()
    return {"memory": {(role, pid): own_bytes([pid]) / 1e6 for pid, role in roles.items()}, "counts": counts}


def _lives(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the growth of every process that lived long enough."""
    series = defaultdict(list)
    for sample in samples:
        for process, size in sample["memory"].items():
            series[process].append((sample["step"], size))
    found = []
    for (role, _), points in series.items():
        late = np.array([point for point in points if point[0] >= points[0][0] + WARM_UP])  # [samples, 2]
        if len(late) and late[-1, 0] - late[0, 0] >= SHORTEST:
            growth = 100 * float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
            life = {"role": role, "steps": points[-1][0] - points[0][0], "last_mb": round(points[-1][1], 1)}
            curve = [(step, round(size, 1)) for step, size in points[:: max(1, len(points) // 40)]]
            found.append({**life, "growth": round(growth, 3), "curve": curve})
    return sorted(found, key=lambda life: -life["growth"])


def _curves(samples: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return for every role the sum of its processes' memory at a hundred moments."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for sample in samples[:: max(1, len(samples) // 100)]:
        sums: dict[str, float] = defaultdict(float)
        for (role, _), size in sample["memory"].items():
            sums[role] += size
        for role, size in sums.items():
            curves[role].append((sample["step"], round(size, 1)))
    return dict(curves)


def _shared() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


if __name__ == "__main__":
    main()
