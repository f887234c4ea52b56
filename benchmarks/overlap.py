"""What the loop adds to its stages, and what sampling ahead of training saves: engine and learner on a core each.

python -m benchmarks.overlap [--rounds 5] [--steps 7] [--passes 1] [--write]

One run of real workers; the engine is pinned to the first core, the learner to the second, reward worker and driver to
both. In every round, each stage alone (sampling, scoring, update and broadcast of one step's work), then `--steps`
synchronous steps (k = 0), then as many with `train.max_staleness=1`. The first step of a stretch fills the pipeline and
the last two empty it: they are not counted. Responses end by themselves or at 512 tokens: a fresh model ends one with a
chance of one in a hundred at each token, so that lengths have a long tail.

    sync / sum      a synchronous step over the sum of the stages alone
    async / slower  an asynchronous step over the slower of sampling alone and training (update and broadcast) alone
    async / sync    both steps of the same round
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from benchmarks.rlsys_side import ClockedDisplay
from benchmarks.sampling import sample
from benchmarks.workload import Workload, build_workload, rlsys_config, side_env
from rlsys.build import Run, build_pipeline, open_run, sampling_plan
from rlsys.config import Config
from rlsys.metrics.run_log import RunLog
from rlsys.metrics.step import StageClock
from rlsys.prepare import prepare
from rlsys.train import _experience, train

GOALS = {"sync / sum": 1.05, "async / slower": 1.08, "async / sync": 0.60}
MAX_TOKENS = 512


def main() -> None:
    """Measure all three in one run."""
    options = _options()
    header = report.header("benchmarks.overlap")
    os.environ.update(side_env(Path(tempfile.gettempdir())))
    rounds = []
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        steps_a_round = 3 + 2 * options.steps
        workload = build_workload(Path(folder), num_batches=(options.rounds + 1) * steps_a_round)
        config = _config(workload, options)
        display = ClockedDisplay(options.steps)
        with open_run(prepare(config), Path(folder) / "run", display) as run:
            pin("ray::RolloutWorker", 0)
            pin("ray::LearnerWorker", 1)
            run.weights.broadcast(0)
            for number in range(options.rounds + 1):
                measured = _round(run, options.steps, Path(folder) / f"round-{number}")
                if number:  # the first warms everything up
                    rounds.append(measured)
                    print({key: round(value, 3) for key, value in measured.items()}, flush=True)
    medians = {key: statistics.median(measured[key] for measured in rounds) for key in rounds[0]}
    shown = report.table("engine on one core, learner on another", ["", "median", "goal"])
    for key, value in medians.items():
        shown.add_row(key, report.number(value, 3), report.number(GOALS.get(key)))
    report.show(shown)
    if options.write:
        settings = {"rounds": options.rounds, "steps": options.steps, "dtype": config.learner.dtype}
        content = {**header, "workload": workload.describe(), **settings, "medians": medians, "each_round": rounds}
        print(f"written: {report.write('overlap', content)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.overlap", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7, help="of each stretch; three of them are not counted")
    parser.add_argument("--passes", type=int, default=1, help="over a step's data, to balance training with sampling")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/overlap.json")
    return parser.parse_args()


def _config(workload: Workload, options: argparse.Namespace) -> Config:
    config = rlsys_config(workload, MAX_TOKENS, num_steps=options.steps)
    config.rollout.ignore_eos = False
    config.rollout.num_threads = config.learner.num_threads = 1
    config.train.updates_per_step = options.passes
    config.logging.tensorboard = False
    config.logging.rollouts_every = 0
    return config


def pin(name: str, core: int) -> None:
    """Keep every thread of the processes of that name, and of their children, on one core."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if name not in " ".join([process.info["name"] or "", *(process.info["cmdline"] or [])]):
            continue
        for each in [process, *process.children(recursive=True)]:
            for thread in each.threads():
                os.sched_setaffinity(thread.id, {core})


def _round(run: Run, num_steps: int, folder: Path) -> dict[str, float]:
    alone = _alone(run)
    sync, ahead = (_step_s(run, staleness, num_steps, folder / str(staleness)) for staleness in (0, 1))
    training = alone["update"] + alone["broadcast"]
    return {
        **{f"{name} alone, s": seconds for name, seconds in alone.items()},
        "synchronous step, s": sync,
        "asynchronous step, s": ahead,
        "sync / sum": sync / sum(alone.values()),
        "async / slower": ahead / max(alone["rollout"], training),
        "async / sync": ahead / sync,
    }


def _alone(run: Run) -> dict[str, float]:
    """Seconds of each stage of one step by itself."""
    pipeline = build_pipeline(run.config, 0, run.calls, run.sampler, None, run.prompts)
    collected = pipeline.collect(0, StageClock())
    experience, _ = _experience(run, collected, 0, StageClock())
    rollout = _seconds(lambda: _sample(run))
    items = [(group.prompt, trajectory) for group in collected.groups for trajectory in group.trajectories]
    score, calls = run.scoring.begin_score, run.calls
    reward = _seconds(lambda: calls.gather({"reward/0": score(0, items, 1)}, what="scoring", deadline_s=60.0))
    return {
        "rollout": rollout,
        "reward": reward,
        "update": _seconds(lambda: run.learner.update(experience)),
        "broadcast": _seconds(lambda: run.weights.broadcast(0)),
    }


def _sample(run: Run) -> None:
    """One step's prompts through the engine, without rewards."""
    plan = sampling_plan(run.config)[0]
    prompts = [run.prompts.take()[1] for _ in range(run.config.train.prompts_per_step)]
    sample(run.calls, run.rollout, prompts, plan, 0, run.config.rollout.linger_s)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _step_s(run: Run, staleness: int, num_steps: int, folder: Path) -> float:
    """Median seconds from step to step in the middle of a stretch."""
    config = replace(run.config, train=replace(run.config.train, max_staleness=staleness, num_steps=num_steps))
    display = ClockedDisplay(num_steps)
    stretch = replace(
        run,
        config=config,
        pipeline=build_pipeline(config, 0, run.calls, run.sampler, None, run.prompts),
        log=RunLog(folder, config.logging),
        display=display,
    )
    train(stretch)
    stretch.log.close()
    gaps = [end - start for start, end in zip(display.done_at, display.done_at[1:], strict=False)]
    return statistics.median(gaps[1:-2])


if __name__ == "__main__":
    main()
