"""The error of the step times that `rlsys simulate` predicts, compared with real runs of the same shape.

python -m benchmarks.simulation [--steps 12] [--write]

Three runs do the same work, with each engine on a core of its own and the learner on the second core: one rollout
worker, two, and one that samples a step ahead. The costs read from each run predict the step time of every run. The
first two steps are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report
from benchmarks.overlap import pin
from benchmarks.rlsys_side import ClockedDisplay
from benchmarks.workload import Workload, build_workload, rlsys_config, side_env
from rlsys.build.run import open_run
from rlsys.commands.simulate.command import shape_of
from rlsys.commands.simulate.costs import Costs, read_costs
from rlsys.commands.simulate.run import Simulation
from rlsys.config.schema import Config
from rlsys.preflight.prepare import prepare
from rlsys.run_folder.folder import RunFolder
from rlsys.train import train

GOAL = 0.15
MAX_TOKENS = 256
SKIP = 2  # first steps that are left out
# Number of rollout workers and max_staleness of each run.
SHAPES = {"1 worker": (1, 0), "2 workers": (2, 0), "1 worker, 1 step ahead": (1, 1)}


@dataclass(frozen=True)
class Measured:
    """One real run: its config, its costs for the simulation and its mean seconds per step."""

    config: Config
    costs: Costs
    step_s: float


def main() -> None:
    """Run every shape, predict every shape's step time from every run, and show the errors."""
    parser = argparse.ArgumentParser("python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/simulation.json")
    options = parser.parse_args()
    header = report.header("benchmarks.simulation")
    os.environ.update(side_env(Path(tempfile.gettempdir())))
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        workload = build_workload(Path(folder), num_batches=options.steps)
        runs = {
            name: _run(workload, Path(folder) / f"run-{number}", *shape, options.steps)
            for number, (name, shape) in enumerate(SHAPES.items())
        }
    shown = report.table("seconds per step", ["predicted from the run of", "for", "predicted", "measured", "error"])
    rows = []
    largest = 0.0
    for source, run in runs.items():
        for target, (workers, staleness) in SHAPES.items():
            predicted = Simulation(run.costs, shape_of(run.config, workers, 1, staleness))().step_s
            error = predicted / runs[target].step_s - 1
            largest = max(largest, abs(error))
            rows.append({"from": source, "for": target, "foretold_s": predicted, "error": error})
            cells = [report.number(predicted, 3), report.number(runs[target].step_s, 3), f"{error:+.1%}"]
            shown.add_row(source, target, *cells)
    report.show(shown)
    print(f"largest error {largest:.1%} (goal {GOAL:.0%})")
    if options.write:
        measured = {name: run.step_s for name, run in runs.items()}
        content = {**header, "workload": workload.describe(), "steps": options.steps, "measured_s": measured}
        print(f"written: {report.write('simulation', {**content, 'foretold': rows})}")


def _run(workload: Workload, folder: Path, workers: int, staleness: int, num_steps: int) -> Measured:
    config = rlsys_config(workload, MAX_TOKENS, num_steps=num_steps)
    config.rollout.ignore_eos = False
    config.rollout.seeded = True
    config.rollout.num_workers = workers
    config.rollout.num_threads = config.learner.num_threads = 1
    config.train.max_staleness = staleness
    config.logging.trackers = []
    config.logging.rollouts_every = 1
    display = ClockedDisplay(num_steps)

    async def run() -> None:
        async with open_run(prepare(config), folder, display) as opened:
            for engine in range(workers):
                pin("ray::RolloutWorker", engine, which=engine)
            pin("ray::PolicyRank", 1)
            await opened.supervise(train(opened))

    asyncio.run(run())
    gaps = [end - start for start, end in zip(display.done_at, display.done_at[1:], strict=False)]
    counted = gaps[SKIP : len(gaps) - staleness - 1]
    return Measured(config, read_costs(RunFolder(folder), config, skip=SKIP), statistics.mean(counted))


if __name__ == "__main__":
    main()
