"""Sampled tokens per second of the rollout pool through Ray, compared with a bare vLLM engine, in turns.

python -m benchmarks.rollout [--tokens 64 256] [--repeats 5] [--warmup 2] [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.engine_sides import engine_env
from benchmarks.side import Side, end_on_sigterm
from benchmarks.workload import PROMPTS_PER_STEP, SAMPLES_PER_PROMPT, Workload, build_workload, side_env

TARGETS = {"pool": "benchmarks.engine_sides:pool_side", "bare": "benchmarks.engine_sides:bare_side"}
# An engine's processes spin for about a second after their last batch; wait until they sleep before timing the other.
SETTLE_S = 2.0


def main() -> None:
    """Start both engines, then measure them in turns."""
    end_on_sigterm()
    options = _options()
    header = report.header("benchmarks.rollout")
    per_length = options.warmup + options.repeats
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder, contextlib.ExitStack() as stack:
        workload = build_workload(Path(folder), num_batches=per_length * len(options.tokens))
        print(f"model: {workload.num_parameters:,} parameters; starting both engines ...", flush=True)
        sides = _start(workload, max(options.tokens), stack)
        for index, tokens in enumerate(options.tokens):
            seconds = _alternate(sides, tokens, range(index * per_length, (index + 1) * per_length))
            runs[str(tokens)] = _summary(seconds, tokens, options.warmup)
    _show(runs)
    if options.write:
        settings = {"warmup_repeats": options.warmup, "measured_repeats": options.repeats}
        content = {**header, "workload": workload.describe(), **settings, "new_tokens": runs}
        print(f"written: {report.write('rollout', content)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.rollout", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256], help="forced response lengths")
    parser.add_argument("--repeats", type=int, default=5, help="measured repeats, each with new prompts")
    parser.add_argument("--warmup", type=int, default=2, help="repeats before the measured ones, not counted")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/rollout.json")
    return parser.parse_args()


def _start(workload: Workload, max_tokens: int, stack: contextlib.ExitStack) -> dict[str, Side]:
    """Start both sides; the bare engine's process gets the environment that rlsys gives its workers through Ray."""
    extra = {"pool": {}, "bare": engine_env(workload, max_tokens)}
    return {
        name: stack.enter_context(
            Side(
                target,
                log=workload.folder / f"{name}.log",
                env=side_env(workload.folder) | extra[name],
                workload=workload,
                max_tokens=max_tokens,
            )
        )
        for name, target in TARGETS.items()
    }


def _alternate(sides: dict[str, Side], tokens: int, batches: range) -> dict[str, list[float]]:
    """Return the seconds of each batch on each side; the side that goes first changes with every batch."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for batch in batches:
        order = list(sides) if batch % 2 == 0 else list(reversed(sides))
        for name in order:
            time.sleep(SETTLE_S)
            seconds[name].append(sides[name](batch=batch, tokens=tokens))
        latest = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"{tokens} new tokens, batch {batch}: {latest}", flush=True)
    return seconds


def _summary(seconds: dict[str, list[float]], tokens: int, warmup: int) -> dict[str, Any]:
    """Return raw seconds, median tokens per second, and the ratio of the two sides."""
    sampled = PROMPTS_PER_STEP * SAMPLES_PER_PROMPT * tokens
    speeds = {name: sampled / statistics.median(values[warmup:]) for name, values in seconds.items()}
    return {"seconds": seconds, "median_tokens_per_s": speeds, "pool_over_bare": speeds["pool"] / speeds["bare"]}


def _show(runs: dict[str, dict[str, Any]]) -> None:
    made = report.table("sampled tokens per second (median)", ["new tokens", *TARGETS, "pool / bare"])
    for tokens, run in runs.items():
        speeds = [report.number(run["median_tokens_per_s"][name], 0) for name in TARGETS]
        made.add_row(tokens, *speeds, report.number(run["pool_over_bare"]))
    report.show(made)


if __name__ == "__main__":
    main()
