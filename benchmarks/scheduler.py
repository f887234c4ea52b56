"""Trajectories per second that the driver handles (admission, routing, groups, scoring queue), without Ray or engines.

python -m benchmarks.scheduler [--sizes 1000 10000 100000] [--repeats 5] [--write]

The driver's code is real. The workers are fake: they take no time and answer each poll with a few trajectories in
random order. Steps are trained as soon as they are ready. The last row is a cluster far larger than ours: 1,000 engines
and 100,000 trajectories per step. The numbers are medians.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import report
from rlsys.data.order import EpochOrder
from rlsys.data.stream import PromptStream
from rlsys.orchestrator.admission import Admission
from rlsys.orchestrator.orchestrator import GroupRule, Orchestrator
from rlsys.orchestrator.router import Router
from rlsys.orchestrator.sampling import GroupSampler
from rlsys.rollout.engine_client import EngineClient
from rlsys.runtime.batching import BatchingQueue
from rlsys.runtime.calls import Calls
from rlsys.runtime.garbage import collect_rarely
from rlsys.types import (
    Finished,
    GroupRequest,
    Prompt,
    Reward,
    RewardPart,
    Sampling,
    ScoringUnit,
    TrajectorySummary,
    UnitScores,
)

GOAL_PER_S = 20_000


@dataclass(frozen=True)
class Load:
    """The sizes of a simulated run."""

    num_engines: int = 4
    prompts_per_step: int = 64
    samples_per_prompt: int = 8
    max_staleness: int = 1
    engine_cap: int = 256  # trajectories that one engine runs at once, enough for all that are admitted
    poll_size: int = 16  # most trajectories in one answer of an engine
    reject_rate: float = 0.1


LARGE = Load(num_engines=1_000, prompts_per_step=12_500, engine_cap=256, poll_size=32)
LARGE_SIZE = 300_000


class FakeWorker:
    """A stand-in for a rollout worker's Ray handle: it has `remote` and `options` and returns futures."""

    def __init__(self, load: Load, draw: random.Random) -> None:
        self._load = load
        self._draw = draw
        self._running: list[tuple[int, int]] = []
        self.submit = self.finished = self.cancel = self

    def options(self, **_: Any) -> FakeWorker:
        return self

    def remote(self, first: Any, _: Any) -> Any:
        """Submit requests when given a list of them, else return finished trajectories."""
        if not isinstance(first, list):
            return _later(self._take()), "chunk"
        requests: list[GroupRequest] = first
        self._running += [(each.request_id, number) for each in requests for number in each.missing]
        return _later(None)

    def _take(self) -> list[Finished]:
        self._draw.shuffle(self._running)
        taken, self._running = self._running[: self._load.poll_size], self._running[self._load.poll_size :]
        given = TrajectorySummary(100, 80, "stop", 0, 0)
        return [Finished(request, number, given) for request, number in taken]


def _later(value: Any) -> asyncio.Future[Any]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    loop.call_soon(lambda: None if future.done() else future.set_result(value))
    return future


def main() -> None:
    """Measure each size and show the rates, which should not fall as runs get larger."""
    options = _options()
    collect_rarely()  # as the driver does once its workers have started
    header = report.header("benchmarks.scheduler")
    shown = report.table(
        f"driver alone, goal {GOAL_PER_S:,}/s", ["engines", "trajectories", "runs", "s", "trajectories/s", "us each"]
    )
    measured = []
    for load, size in [*((Load(), size) for size in options.sizes), (LARGE, LARGE_SIZE)]:
        seconds = [seconds_to_train(load, size, seed) for seed in range(options.repeats)]
        median = statistics.median(seconds)
        measured.append(
            {**asdict(load), "trajectories": size, "seconds": seconds, "median_trajectories_per_s": size / median}
        )
        cells = [report.number(median, 3), report.number(size / median, 0), report.number(1e6 * median / size, 1)]
        shown.add_row(f"{load.num_engines:,}", f"{size:,}", str(options.repeats), *cells)
    report.show(shown)
    if options.write:
        print(f"written: {report.write('scheduler', {**header, 'loads': measured})}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.scheduler", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/scheduler.json")
    return parser.parse_args()


def seconds_to_train(load: Load, num_trajectories: int, seed: int) -> float:
    """Return the wall-clock seconds until `num_trajectories` are trained, the fake workers' own work included."""
    return asyncio.run(_train(load, num_trajectories, random.Random(seed)))


async def _train(load: Load, num_trajectories: int, draw: random.Random) -> float:
    calls = Calls()
    engines = [
        EngineClient(f"rollout/{number}", FakeWorker(load, draw), calls, linger_s=0.0)
        for number in range(load.num_engines)
    ]
    good, bad = (Reward(value, {"r": RewardPart(value, "ok")}, "ok") for value in (1.0, 0.0))

    async def score(_: int, units: Sequence[ScoringUnit]) -> list[UnitScores]:
        rejected = int(1 / load.reject_rate)
        return [
            ([bad if unit.prompt.index % rejected == 0 or each.number % 2 else good for each in unit.samples], {})
            for unit in units
        ]

    scoring: BatchingQueue[ScoringUnit, UnitScores] = BatchingQueue(4, score, calls.background, weight=len)
    prompts = [Prompt(number, "", np.array([1], dtype=np.int32)) for number in range(2 * num_trajectories)]

    def lost(engine: int, why: str) -> None:
        raise AssertionError(why)

    sampler = GroupSampler(
        dict(enumerate(engines)),
        scoring,
        Router([load.engine_cap] * load.num_engines),
        lose=lost,
        whole_groups=False,
        deadline_s=600.0,
    )
    orchestrator = Orchestrator(
        calls.background,
        sampler,
        Admission(load.prompts_per_step, load.max_staleness),
        PromptStream(prompts, EpochOrder(len(prompts), [0], shuffle=False)),
        [Sampling(1.0, 80, load.samples_per_prompt)],
        GroupRule(load.prompts_per_step, keeps_equal_rewards=False, compares_parts=False, on_error="mask"),
        None,
        deadline_s=600.0,
    )

    async def train() -> float:
        start, done, step = time.perf_counter(), 0, 0
        while done < num_trajectories:
            step += 1
            done += len((await orchestrator.next_batch(step)).trained) * load.samples_per_prompt
        return (time.perf_counter() - start) * num_trajectories / done

    return await calls.background.supervise(train())


if __name__ == "__main__":
    main()
