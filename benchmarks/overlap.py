"""The time that a step takes beyond its stages, and the time that sampling ahead of training saves.

python -m benchmarks.overlap [--rounds 5] [--steps 8] [--ahead 2] [--passes 1] [--write]

One run of real workers: the engine is pinned to the first core, the learner to the second, and the scoring worker and
the driver may use both. Each round has three parts with the same prompts and seeds, so that the responses are the same:

    1. each stage alone: sampling, scoring, update, broadcast
    2. synchronous steps, with `train.max_staleness=0`
    3. `--steps` asynchronous steps, with a `train.max_staleness` of `--ahead`

The first asynchronous step fills the pipeline and the last ones empty it, so they are not counted, and neither are the
same steps of the other two parts. A response ends at its end token or at 512 tokens; a fresh model samples the end
token with a probability of one in a hundred at each position, so the lengths have a long tail. The ratios are:

    sync / sum      a synchronous step over the sum of the stages alone
    async / slower  an asynchronous step over the slower of sampling alone and training (update and broadcast) alone
    async / sync    an asynchronous step over a synchronous step of the same round
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from benchmarks.rlsys_side import ClockedDisplay
from benchmarks.sampling import sample
from benchmarks.workload import Workload, build_workload, rlsys_config, side_env
from rlsys.build.run import Run, build_run, open_run
from rlsys.config.schema import Config
from rlsys.data.order import EpochOrder
from rlsys.data.stream import PromptStream
from rlsys.orchestrator.batch import StepBatch
from rlsys.orchestrator.from_config import orchestrator_of, sampling_params_of
from rlsys.preflight.prepare import prepare
from rlsys.reference.policy import FrozenReference
from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.metrics import MetricsWriter
from rlsys.train import train
from rlsys.types import Prompt, Sample, ScoringUnit
from rlsys.weights.from_config import broadcaster_of

GOALS = {"sync / sum": 1.05, "async / slower": 1.08, "async / sync": 0.60}
MAX_TOKENS = 512


def main() -> None:
    """Measure the rounds in one run and show the medians of their times and ratios."""
    options = _options()
    header = report.header("benchmarks.overlap")
    os.environ.update(side_env(Path(tempfile.gettempdir())))
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        workload = build_workload(Path(folder), num_batches=options.steps)
        rounds = asyncio.run(_rounds(_config(workload, options), options, Path(folder)))
    medians = {key: statistics.median(measured[key] for measured in rounds) for key in rounds[0]}
    shown = report.table("engine on one core, learner on another", ["", "median", "goal"])
    for key, value in medians.items():
        shown.add_row(key, report.number(value, 3), report.number(GOALS.get(key)))
    report.show(shown)
    if options.write:
        settings = {name: getattr(options, name) for name in ("rounds", "steps", "ahead", "passes")}
        content = {**header, "workload": workload.describe(), **settings, "medians": medians, "each_round": rounds}
        print(f"written: {report.write('overlap', content)}")


async def _rounds(config: Config, options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    rounds = []
    async with open_run(prepare(config), folder / "run", ClockedDisplay(options.steps)) as run:
        pin("ray::RolloutWorker", 0)
        pin("ray::PolicyRank", 1)
        await run.weights.broadcast(0)
        await _step_s(run, 1, 3, folder / "warm-up")
        for number in range(options.rounds):
            rounds.append(await _round(run, options, folder / f"round-{number}"))
            print({key: round(value, 3) for key, value in rounds[-1].items()}, flush=True)
    return rounds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.overlap", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="asynchronous steps per round")
    parser.add_argument("--ahead", type=int, default=2, help="train.max_staleness of the asynchronous steps")
    parser.add_argument("--passes", type=int, default=1, help="train.updates_per_step, balances training and sampling")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/overlap.json")
    return parser.parse_args()


def _config(workload: Workload, options: argparse.Namespace) -> Config:
    config = rlsys_config(workload, MAX_TOKENS, num_steps=options.steps)
    config.rollout.ignore_eos = False
    config.rollout.seeded = True
    config.rollout.num_threads = config.learner.num_threads = 1
    config.train.updates_per_step = options.passes
    config.logging.trackers = []
    config.logging.rollouts_every = 0
    return config


def pin(name: str, core: int, which: int | None = None) -> None:
    """Keep the processes whose name or command contains `name`, and their children, on one core with all threads.

    With `which`, pin only one of these processes: the one at this index, oldest first.
    """
    found = [
        process
        for process in psutil.process_iter(["name", "cmdline", "create_time"])
        if name in " ".join([process.info["name"] or "", *(process.info["cmdline"] or [])])
    ]
    found.sort(key=lambda process: process.info["create_time"])
    for process in found if which is None else [found[which]]:
        for each in [process, *process.children(recursive=True)]:
            for thread in each.threads():
                os.sched_setaffinity(thread.id, {core})


async def _round(run: Run, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    last = options.steps - options.ahead - 1  # the last step that is counted
    background = run.roles.cluster.calls.background
    stages = await background.supervise(_alone(run, last))
    alone = {name: statistics.mean(seconds[1:]) for name, seconds in stages.items()}
    sync_steps, sync_cpu_s = await _step_s(run, 0, last, folder / "sync")
    ahead_steps, ahead_cpu_s = await _step_s(run, options.ahead, options.steps, folder / "ahead")
    sync, ahead = statistics.mean(sync_steps[1:]), statistics.mean(ahead_steps[1:last])
    training = alone["update"] + alone["broadcast"]
    return {
        **{f"{name} alone, s": seconds for name, seconds in alone.items()},
        "synchronous step, s": sync,
        "asynchronous step, s": ahead,
        "sync / sum": sync / sum(alone.values()),
        "async / slower": ahead / max(alone["rollout"], training),
        "async / sync": ahead / sync,
        "driver CPU, s per synchronous step": sync_cpu_s,
        "driver CPU, s per asynchronous step": ahead_cpu_s,
    }


async def _alone(run: Run, num_steps: int) -> dict[str, list[float]]:
    """Return the seconds of each stage by itself, one number per step."""
    seconds: dict[str, list[float]] = {"rollout": [], "scoring": [], "update": [], "broadcast": []}
    prompts = _first_prompts(run)
    # Synchronous and without a reference: it only provides the experience for the stages that are measured.
    orchestrator = orchestrator_of(
        run.prepared.config, 0, run.roles.cluster.calls, run.sampler, FrozenReference().queue, _first_prompts(run)
    )
    for step in range(1, num_steps + 1):
        batch = await orchestrator.next_batch(step)
        experience = await run.experience.build(batch)
        seconds["scoring"].append(await _seconds(_score(run, batch)))
        seconds["update"].append(await _seconds(run.learners.update(experience, step)))
        seconds["broadcast"].append(await _seconds(run.weights.broadcast(step)))
        taken = [prompts.take()[1] for _ in batch.groups]
        seconds["rollout"].append(await _seconds(_sample(run, taken, step)))
    return seconds


def _first_prompts(run: Run) -> PromptStream:
    """Return a stream of the training prompts from the first on; each part of a round begins with the same prompts.

    Their prefixes are not found in the engine's cache, because new weights arrive between the parts.
    """
    return PromptStream(run.prepared.train_prompts, EpochOrder(len(run.prepared.train_prompts), [0], shuffle=False))


async def _score(run: Run, batch: StepBatch) -> None:
    units = []
    for group in batch.groups:
        pairs = zip(group.rollout.summaries, group.rollout.trajectories, strict=True)
        samples = tuple(Sample(number, *pair) for number, pair in enumerate(pairs))
        units.append(run.roles.scoring.queue.put(ScoringUnit(group.rollout.prompt, samples, 1)))
    await asyncio.gather(*units)


async def _sample(run: Run, prompts: Sequence[Prompt], step: int) -> None:
    """Sample one step's prompts without scoring them, under the step's group ids, on which the seeds depend."""
    sampling, first = sampling_params_of(run.prepared.config)[0], (step - 1) * len(prompts)
    await sample(run.roles.rollout, prompts, sampling, 0, first_group_id=first)


async def _seconds(work: Awaitable[Any]) -> float:
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def _step_s(run: Run, staleness: int, num_steps: int, folder: Path) -> tuple[list[float], float]:
    """Return the seconds of each step, and the driver's CPU seconds per step."""
    before = run.prepared.config
    config = replace(before, train=replace(before.train, max_staleness=staleness, num_steps=num_steps))
    display, log = ClockedDisplay(num_steps), MetricsWriter(folder, config.logging)
    roles = run.roles
    broadcaster = broadcaster_of(config, roles.policy, roles.rollout, roles.cluster.calls)
    part = build_run(
        replace(run.prepared, config=config), folder, run.roles, broadcaster, RunState(0, 0), log=log, display=display
    )
    cpu = time.process_time()
    await part.supervise(train(part))
    cpu_s = (time.process_time() - cpu) / num_steps
    log.close()
    return [end - start for start, end in zip(display.done_at, display.done_at[1:], strict=False)], cpu_s


if __name__ == "__main__":
    main()
