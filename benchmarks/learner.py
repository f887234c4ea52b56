"""Trained tokens per second of a learner rank's update, compared with a bare DeepSpeed loop over the same batches.

python -m benchmarks.learner [--repeats 7] [--write]

Both run in one process and in turns, on all cores, without Ray. The bare loop gets packed batches made beforehand and
does forward, backward and optimizer step. The rank gets trajectories as the engines return them: it packs them,
compares its log-probabilities with the engines', computes the whole objective with its metrics, and does the optimizer
step. The work is 16 prompts x 8 responses with a mean length of 0.4 of the longest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.workload import PROMPTS_PER_STEP, SAMPLES_PER_PROMPT, Workload, build_workload, rlsys_config
from rlsys.learner.engine import build_engine
from rlsys.learner.policy_rank import PolicyRank
from rlsys.learner.rank_batch import RankBatch, items_of
from rlsys.learner.setup import PolicySetup
from rlsys.models.packing import TokenBatch
from rlsys.models.policy import DTYPES
from rlsys.types import Coefficients, ExperienceRow, Trajectory, VersionSpan

GOAL = 0.95
LONGEST = 256
PROMPT = 32


def main() -> None:
    """Measure the rank and the bare loop in turns and show the trained tokens per second."""
    parser = argparse.ArgumentParser("python -m benchmarks.learner", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/learner.json")
    options = parser.parse_args()
    header = report.header("benchmarks.learner")
    os.environ |= {"DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        workload = build_workload(Path(folder), num_batches=1)
        worker = _worker(workload, options.dtype)
        batch, chunk = _work()
        engine, batches = _bare(worker, batch, chunk)
    worker._setup.weights.verify = False  # the log-probabilities are made up: compare, but do not fail
    tokens = batch.num_tokens[0]
    seconds: dict[str, list[float]] = {"rank": [], "bare": []}
    for repeat in range(options.repeats + 2):
        measured = {"rank": _timed(lambda: worker.update(batch, chunk)), "bare": _timed(lambda: _loop(engine, batches))}
        for name, value in measured.items():
            if repeat > 1:  # the first two warm up
                seconds[name].append(value)
    rates = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    ratio = rates["rank"] / rates["bare"]
    shown = report.table(f"{options.dtype}, {torch.get_num_threads()} threads", ["", "trained tokens/s"])
    for name, rate in rates.items():
        shown.add_row(name, report.number(rate, 0))
    shown.add_row(f"rank / bare (goal {GOAL})", report.number(ratio, 3))
    report.show(shown)
    if options.write:
        content = {**header, "workload": workload.describe(), "dtype": options.dtype, "seconds": seconds}
        content |= {"trained_tokens": tokens, "tokens_per_s": rates, "rank_over_bare": ratio}
        print(f"written: {report.write('learner', content)}")


def _timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _worker(workload: Workload, dtype: str) -> PolicyRank:
    config = rlsys_config(workload, LONGEST)
    config.learner.dtype = dtype
    worker = PolicyRank(0, PolicySetup.from_config(config, str(workload.model), LONGEST))
    worker.start("127.0.0.1", 29531)
    return worker


def _work() -> tuple[RankBatch, list[Trajectory]]:
    """Return one step's rows and the chunk with their trajectories."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.gamma(2.0, 0.2 * LONGEST, size=PROMPTS_PER_STEP * SAMPLES_PER_PROMPT), 8, LONGEST)
    chunk: list[Trajectory] = []
    rows = []
    for group in range(PROMPTS_PER_STEP):
        prompt = generator.integers(5, 90, size=PROMPT)
        for sample in range(SAMPLES_PER_PROMPT):
            size = int(lengths[len(chunk)])
            total = PROMPT + size
            rows.append(ExperienceRow(len(chunk), group, sample, float(generator.normal()), 1.0, total, size))
            chunk.append(
                Trajectory(
                    token_ids=np.concatenate([prompt, generator.integers(5, 90, size=size)]).astype(np.int32),
                    loss_mask=np.arange(total) >= PROMPT,
                    behavior_logprobs=np.where(np.arange(total) >= PROMPT, -4.5, 0.0).astype(np.float32),
                    versions=(VersionSpan(0, PROMPT, total),),
                    finish_reason="stop",
                    engine=0,
                )
            )
    indices = [
        [(0, group * SAMPLES_PER_PROMPT + s) for s in range(SAMPLES_PER_PROMPT)] for group in range(PROMPTS_PER_STEP)
    ]
    trained = sum(row.num_response_tokens for row in rows)
    batch = RankBatch((tuple(rows),), (trained,), Coefficients(0.0, 0.0), 0, indices, False, False)
    return batch, chunk


def _bare(worker: PolicyRank, batch: RankBatch, chunk: list[Trajectory]) -> tuple[Any, list[TokenBatch]]:
    """Return a second DeepSpeed engine over the same model, and the batches that the rank would make."""
    setup = worker._setup
    policy = worker._build_model()
    engine = build_engine(setup.learner, policy, 1, setup.num_updates)
    items = items_of(batch, [chunk])[0]
    return engine, [worker._batch(part) for part in worker._microbatches(items)]


def _loop(engine: Any, batches: list[TokenBatch]) -> None:
    for batch in batches:
        logprobs, _ = engine(batch, 1.0)
        engine.backward(-logprobs.sum() / 10_000)
    engine.step()


if __name__ == "__main__":
    main()
