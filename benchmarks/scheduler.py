"""Trajectories a second through the scheduler: ledger, router and what is ready, without Ray, engines or a learner.

python -m benchmarks.scheduler [--sizes 1000 10000 100000 1000000] [--repeats 5] [--write]

Fake engines finish trajectories in random order and take no time; steps are trained as soon as they are ready. Figures
are medians; from a million trajectories on there is one run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import asdict, dataclass

from benchmarks import report
from rlsys.orchestrator.admission import Ledger
from rlsys.orchestrator.scheduler import Scheduler

GOAL_PER_S = 20_000
NUM_ENGINES = 4
ONE_RUN_FROM = 1_000_000


@dataclass(frozen=True)
class Load:
    """Sizes of a run."""

    prompts_per_step: int = 64
    samples_per_prompt: int = 8
    max_staleness: int = 1
    engine_cap: int = 256  # trajectories at once: four engines hold all that the ledger admits
    reject_rate: float = 0.1


def main() -> None:
    """Measure each size and show whether the rate stays flat."""
    options = _options()
    header, load = report.header("benchmarks.scheduler"), Load()
    shown = report.table(
        f"scheduler alone, goal {GOAL_PER_S:,}/s", ["trajectories", "runs", "s", "trajectories/s", "us each"]
    )
    sizes = {}
    for size in options.sizes:
        repeats = 1 if size >= ONE_RUN_FROM else options.repeats
        seconds = [seconds_to_train(load, size, seed) for seed in range(repeats)]
        median = statistics.median(seconds)
        sizes[str(size)] = {"seconds": seconds, "median_trajectories_per_s": size / median}
        cells = [report.number(median, 3), report.number(size / median, 0), report.number(1e6 * median / size, 1)]
        shown.add_row(f"{size:,}", str(repeats), *cells)
    report.show(shown)
    if options.write:
        content = {**header, "load": {**asdict(load), "num_engines": NUM_ENGINES}, "trajectories": sizes}
        print(f"written: {report.write('scheduler', content)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.scheduler", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5, help="runs of each size below a million")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/scheduler.json")
    return parser.parse_args()


def seconds_to_train(load: Load, num_trajectories: int, seed: int) -> float:
    """Wall-clock seconds until that many trajectories are sampled, the fakes' own random choices among them."""
    ledger = Ledger(load.prompts_per_step, load.max_staleness)
    scheduler = Scheduler(ledger, [load.engine_cap] * NUM_ENGINES, load.samples_per_prompt)
    draw = random.Random(seed).random
    running: list[tuple[int, int, int]] = []  # group, attempt, sample
    start = time.perf_counter()
    _admit(scheduler, running)
    for _ in range(num_trajectories):
        # Swap with the last: taking one from the middle of a list costs by its length.
        index = int(draw() * len(running))
        running[index], running[-1] = running[-1], running[index]
        group, attempt, sample = running.pop()
        if scheduler.on_sampled(group, attempt, sample) == "whole":
            scheduler.on_scored(group, attempt, keep=draw() >= load.reject_rate)
            if scheduler.take() is not None:
                scheduler.advance(scheduler.policy_version + 1)
        _admit(scheduler, running)
    return time.perf_counter() - start


def _admit(scheduler: Scheduler, running: list[tuple[int, int, int]]) -> None:
    for admission in scheduler.admissions():
        running += [(admission.group_id, admission.attempt, sample) for sample in range(admission.num_samples)]


if __name__ == "__main__":
    main()
