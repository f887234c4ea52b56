"""`rlsys simulate RUN`: how long a step would take with other numbers of workers, and which role is the bottleneck."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from rlsys.algorithms.requirements import reference_workers
from rlsys.commands.numbers import at_least
from rlsys.commands.simulate.costs import read_costs
from rlsys.commands.simulate.run import Prediction, Shape, Simulation
from rlsys.config.paths import expand
from rlsys.config.schema import Config
from rlsys.run_folder.folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run to start from and the numbers to vary."""
    parser.description = "Predict a run's step time and its bottleneck with other numbers of workers."
    parser.add_argument(
        "folder", type=expand, metavar="RUN", help="folder of a finished run, with metrics.jsonl and rollouts/"
    )
    parser.add_argument("--rollout-workers", type=at_least(1), nargs="+", help="default: the run's")
    parser.add_argument("--learner-ranks", type=at_least(1), nargs="+", help="default: the run's")
    parser.add_argument("--max-staleness", type=at_least(0), nargs="+", help="default: the run's")
    parser.add_argument("--steps", type=at_least(1), default=40, help="simulated steps (default: 40)")


def run(options: argparse.Namespace) -> None:
    """Print the step time and the bottleneck for every combination asked for."""
    folder = RunFolder.open(options.folder)
    config = folder.config()
    costs = read_costs(folder, config)
    table = Table(title=f"{options.folder}: {costs.step_s:.3f} s per step as measured")
    for column in ("rollout workers", "learner ranks", "max staleness", "s per step", "bottleneck", "idle"):
        table.add_column(column, justify="right")
    for workers in options.rollout_workers or [config.rollout.num_workers]:
        for ranks in options.learner_ranks or [config.learner.num_workers]:
            for staleness in options.max_staleness or [config.train.max_staleness]:
                prediction = Simulation(costs, shape_of(config, workers, ranks, staleness, options.steps))()
                table.add_row(str(workers), str(ranks), str(staleness), *_cells(prediction))
    Console().print(table)


def shape_of(config: Config, workers: int, ranks: int, staleness: int, num_steps: int = 40) -> Shape:
    """Return the shape of the configured run with other numbers of workers and ranks, staleness and steps."""
    return Shape(
        rollout_workers=workers,
        learner_ranks=ranks,
        scoring_workers=config.scoring.num_workers,
        reference_workers=reference_workers(config),
        prompts_per_step=config.train.prompts_per_step,
        samples_per_prompt=config.train.samples_per_prompt,
        max_staleness=staleness,
        max_in_flight=config.rollout.cap,
        num_steps=num_steps,
    )


def _cells(prediction: Prediction) -> tuple[str, str, str]:
    idle = ", ".join(f"{role} {share:.0%}" for role, share in prediction.idle.items())
    return f"{prediction.step_s:.3f}", prediction.bottleneck, idle
