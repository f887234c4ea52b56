"""The rlsys side of the end-to-end benchmark: the real training loop, with times read from its own metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.workload import Case, Workload, rlsys_config
from rlsys.metrics.display import Display
from rlsys.metrics.step import STAGES, Metrics


class ClockedDisplay(Display):
    """A display that records when each step was done, its files written; step 0 is the start of the loop."""

    def __init__(self, num_steps: int) -> None:
        super().__init__(num_steps, live=False)
        self.done_at: list[float] = []

    def step(self, metrics: Metrics, *, at: float | None = None) -> None:
        super().step(metrics, at=at)
        self.done_at.append(time.perf_counter())


@contextlib.contextmanager
def rlsys_side() -> Iterator[Callable[..., dict[str, Any]]]:
    yield measure


def measure(workload: Workload, case: Case, num_steps: int, kl: float) -> dict[str, Any]:
    """Train `num_steps` steps and return the seconds of each, by stage and in total."""
    from rlsys.build.run import open_run
    from rlsys.commands.libraries import quiet_libraries
    from rlsys.preflight.prepare import prepare
    from rlsys.train import train

    quiet_libraries()
    config = rlsys_config(workload, case.tokens, num_steps=num_steps, kl=kl)
    config.rollout.ignore_eos = not case.natural
    prepared = prepare(config)
    run_dir = workload.folder / "rlsys"
    display = ClockedDisplay(num_steps)

    async def run() -> None:
        async with open_run(prepared, run_dir, display) as opened:
            await opened.supervise(train(opened))

    with display:
        asyncio.run(run())

    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if row["step"] > 0]
    for row in steps:
        if not case.natural and row["rollout/response_tokens/mean"] != case.tokens:
            raise RuntimeError(f"step {row['step']}: responses must have {case.tokens} tokens; metrics: {row}")
    return {
        "response_tokens": [row["rollout/response_tokens/mean"] for row in steps],
        "stages": {stage: [row.get(f"time/{stage}_s", 0.0) for row in steps] for stage in STAGES},
        "step": [row["time/step_s"] for row in steps],
        "step_to_step": [end - start for start, end in zip(display.done_at, display.done_at[1:], strict=False)],
    }
