"""The driver's memory for longer and longer responses, with the real scheduler, real scoring workers and a fake engine.

python -m benchmarks.driver_memory [--steps 12] [--write]

Steps have 128 responses of 1,000 tokens each, then of 4,000, then of 16,000. Each length is measured in a driver
process of its own, which runs the part of a step that handles trajectories: it collects groups, has their text written
to rollouts/ and drops its references to them. Its resident memory is read at the end of every step. The fake engine
makes up random tokens and returns them at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import report
from benchmarks.side import Side, end_on_sigterm
from benchmarks.workload import PROMPTS_PER_STEP, SAMPLES_PER_PROMPT, Workload, build_workload, rlsys_config, side_env
from rlsys.types import Finished, GroupRequest, Trajectory, TrajectorySummary, VersionSpan

LENGTHS = (1_000, 4_000, 16_000)
WARMUP = 4  # steps that are not counted, in which pools and caches fill
BYTES_PER_TOKEN = 9  # token id 4, mask 1, log-probability 4


class FakeEngine:
    """A stand-in for a rollout worker: it returns random tokens at once, in chunks of eight trajectories."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._waiting: list[tuple[int, int, np.ndarray]] = []

    def submit(self, requests: Sequence[GroupRequest], policy_version: int) -> None:
        for request in requests:
            self._waiting += [(request.request_id, sample, request.token_ids) for sample in request.missing]

    def finished(self, max_wait_s: float, linger_s: float) -> tuple[list[Finished], list[Trajectory]]:
        now, self._waiting = self._waiting[:8], self._waiting[8:]
        made = [self._generate(*sample) for sample in now]
        return [finished for finished, _ in made], [trajectory for _, trajectory in made]

    def _generate(self, request: int, sample: int, prompt: np.ndarray) -> tuple[Finished, Trajectory]:
        start, size = len(prompt), len(prompt) + self._num_tokens
        generator = np.random.default_rng([request, sample])
        response = generator.integers(5, 90, self._num_tokens).astype(np.int32)
        trajectory = Trajectory(
            token_ids=np.concatenate([prompt, response]),
            loss_mask=np.arange(size) >= start,
            behavior_logprobs=generator.normal(-4.5, 0.1, size).astype(np.float32),
            versions=(VersionSpan(0, start, size),),
            finish_reason="length",
            engine=0,
        )
        return Finished(request, sample, TrajectorySummary(size, self._num_tokens, "length", 0, 0)), trajectory


@contextlib.contextmanager
def driver() -> Iterator[Callable[..., list[float]]]:
    """Provide the measurement, in the driver process whose memory is measured."""
    yield _megabytes


def _megabytes(workload: Workload, num_tokens: int, num_steps: int) -> list[float]:
    """Return the resident memory in MB after every step, without the object store's shared memory."""
    from rlsys.build.placement import worker_demands
    from rlsys.build.run import connect, start_scoring
    from rlsys.preflight.prepare import prepare
    from rlsys.rollout.engine_client import EngineClient
    from rlsys.rollout.pool import RolloutPool

    config = rlsys_config(workload, 64, num_steps=num_steps)
    config.logging.trackers = []
    prepared = prepare(config)
    wanted = {role: demand for role, demand in worker_demands(config).items() if role in ("rollout", "scoring")}
    with connect(config, wanted) as cluster:
        pool: Any = RolloutPool.__new__(RolloutPool)
        pool._calls = cluster.calls
        name = wanted["rollout"][0].name
        worker = cluster.start(FakeEngine, wanted["rollout"][0], num_tokens)
        pool.engines = {0: EngineClient(name, worker, cluster.calls, linger_s=0.0)}
        scoring = start_scoring(cluster, prepared, wanted["scoring"])

        async def whole() -> list[float]:
            await scoring.start(120.0)
            return await cluster.calls.background.supervise(
                _steps(prepared, cluster, pool, scoring, workload.folder / f"run-{num_tokens}", num_steps)
            )

        return asyncio.run(whole())


async def _steps(prepared: Any, cluster: Any, pool: Any, scoring: Any, folder: Path, num_steps: int) -> list[float]:
    from rlsys.data.order import EpochOrder
    from rlsys.data.stream import PromptStream
    from rlsys.orchestrator.from_config import orchestrator_of, sampler_of
    from rlsys.reference.policy import FrozenReference
    from rlsys.run_folder.rollouts import RolloutWriter
    from rlsys.types import Coefficients, Experience

    async def no_estimates(_: Any) -> list[Any]:
        return []

    config = prepared.config
    prompts = PromptStream(prepared.train_prompts, EpochOrder(len(prepared.train_prompts), [0], shuffle=False))
    sampler = sampler_of(config, pool, scoring.queue)
    orchestrator = orchestrator_of(config, 0, cluster.calls, sampler, FrozenReference().queue, prompts)
    folder.mkdir()
    writer = RolloutWriter(folder, config.logging, scoring.text, pool.trajectories, no_estimates)
    nothing = Experience((), (), None, None, 0, Coefficients(0.0, 0.0))
    resident = []
    for step in range(1, num_steps + 1):
        batch = await orchestrator.next_batch(step)
        await writer.write(step, batch.groups, batch.trained, nothing)
        del batch
        gc.collect()
        memory = psutil.Process().memory_info()
        resident.append((memory.rss - memory.shared) / 1e6)
        await asyncio.sleep(0.1)
    return resident


def main() -> None:
    """Measure every response length and show the driver's memory."""
    end_on_sigterm()
    parser = argparse.ArgumentParser("python -m benchmarks.driver_memory", description=__doc__)
    parser.add_argument("--steps", type=int, default=12, help=f"steps, of which the first {WARMUP} are not counted")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/driver_memory.json")
    options = parser.parse_args()
    header = report.header("benchmarks.driver_memory")
    rows = []
    shown = report.table("driver, MB", ["tokens per response", "token arrays per step", "first", "last", "highest"])
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        workload = build_workload(Path(folder), num_batches=options.steps)
        for num_tokens in LENGTHS:
            log = Path(folder) / f"{num_tokens}.log"
            with Side("benchmarks.driver_memory:driver", log=log, env=side_env(Path(folder))) as measure:
                counted = measure(workload=workload, num_tokens=num_tokens, num_steps=options.steps)[WARMUP:]
            size = PROMPTS_PER_STEP * SAMPLES_PER_PROMPT * num_tokens * BYTES_PER_TOKEN / 1e6
            rows.append({"tokens": num_tokens, "arrays_mb": size, "resident_mb": counted})
            cells = [report.number(value, 1) for value in (size, counted[0], counted[-1], max(counted))]
            shown.add_row(f"{num_tokens:,}", *cells)
    report.show(shown)
    if options.write:
        print(f"written: {report.write('driver_memory', {**header, 'steps': options.steps, 'lengths': rows})}")


if __name__ == "__main__":
    main()
