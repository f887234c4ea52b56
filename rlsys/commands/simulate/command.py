"""`rlsys simulate RUN`: how long a step would take with other numbers of workers, and which role is the bottleneck."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlsys.algorithms.requirements import reference_workers
from rlsys.commands.simulate.costs import read_costs
from rlsys.commands.simulate.run import Outcome, Shape, Simulation
from rlsys.config.schema import Config
from rlsys.run_folder.folder import RunFolder


def simulate(arguments: Sequence[str]) -> None:
    """Print the time per step and the bottleneck for every combination of the given numbers."""
    parser = argparse.ArgumentParser("rlsys simulate", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, with metrics.jsonl and rollouts/")
    parser.add_argument("--rollout-workers", type=int, nargs="+", help="default: the run's")
    parser.add_argument("--learner-ranks", type=int, nargs="+", help="default: the run's")
    parser.add_argument("--max-staleness", type=int, nargs="+", help="default: the run's")
    parser.add_argument("--steps", type=int, default=40, help="simulated steps (default: 40)")
    options = parser.parse_args(arguments)
    run = RunFolder.open(options.run)
    config = run.config()
    costs = read_costs(run, config)
    table = Table(title=f"{options.run}: {costs.step_s:.3f} s per step as measured")
    for column in ("rollout workers", "learner ranks", "max staleness", "s per step", "bottleneck", "idle"):
        table.add_column(column, justify="right")
    for workers in options.rollout_workers or [config.rollout.num_workers]:
        for ranks in options.learner_ranks or [config.learner.num_workers]:
            for staleness in options.max_staleness or [config.train.max_staleness]:
                outcome = Simulation(costs, shape_of(config, workers, ranks, staleness, options.steps))()
                table.add_row(str(workers), str(ranks), str(staleness), *_cells(outcome))
    Console().print(table)


def shape_of(config: Config, workers: int, ranks: int, staleness: int, num_steps: int = 40) -> Shape:
    """Return the shape of the configured run with other numbers of workers and ranks, staleness and steps."""
    return Shape(
        rollout_workers=workers,
        learner_ranks=ranks,
        reward_workers=config.scoring.num_workers,
        reference_workers=reference_workers(config),
        prompts_per_step=config.train.prompts_per_step,
        samples_per_prompt=config.train.samples_per_prompt,
        max_staleness=staleness,
        max_in_flight=config.rollout.max_in_flight or 2 * config.rollout.max_num_seqs,
        num_steps=num_steps,
    )


def _cells(outcome: Outcome) -> tuple[str, str, str]:
    idle = ", ".join(f"{role} {share:.0%}" for role, share in outcome.idle.items())
    return f"{outcome.step_s:.3f}", outcome.bottleneck, idle
