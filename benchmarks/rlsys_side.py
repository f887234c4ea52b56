"""The rlsys side of the end-to-end benchmark: the real loop, read back from its own metrics."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.workload import Workload, rlsys_config
from rlsys.metrics.display import STAGES, Display
from rlsys.metrics.step import Metrics


class ClockedDisplay(Display):
    """Also notes when each step was done, files written and all; step 0 is the loop's start."""

    def __init__(self, num_steps: int) -> None:
        super().__init__(num_steps, live=False)
        self.done_at: list[float] = []

    def step(self, metrics: Metrics) -> None:
        super().step(metrics)
        self.done_at.append(time.perf_counter())


@contextlib.contextmanager
def rlsys_side() -> Iterator[Callable[..., dict[str, Any]]]:
    yield measure


def measure(workload: Workload, tokens: int, num_steps: int, kl: float) -> dict[str, Any]:
    """Train `num_steps` steps with responses of `tokens` tokens; returns seconds, one number a step."""
    from rlsys.build import open_run
    from rlsys.cli import quiet_libraries
    from rlsys.prepare import prepare
    from rlsys.train import train

    quiet_libraries()
    prepared = prepare(rlsys_config(workload, tokens, num_steps=num_steps, kl=kl))
    run_dir = workload.folder / f"rlsys-{tokens}"
    display = ClockedDisplay(num_steps)
    with display, open_run(prepared, run_dir, display) as run:
        train(run)

    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if row["step"] > 0]
    for row in steps:
        if row["rollout/response_tokens/mean"] != tokens or row["rollout/truncated_fraction"] != 1.0:
            raise RuntimeError(f"step {row['step']}: responses were not forced to {tokens} tokens: {row}")
    return {
        "stages": {stage: [row[f"time/{stage}_s"] for row in steps] for stage in STAGES},
        "step": [row["time/step_s"] for row in steps],
        "step_to_step": [end - start for start, end in zip(display.done_at, display.done_at[1:], strict=False)],
    }
