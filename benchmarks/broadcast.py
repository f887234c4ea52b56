"""Time to broadcast a 0.5B-parameter policy to a vLLM engine, and how long it stops the requests in progress.

The broadcast is compared with its two parts: a bare gloo broadcast of the same bytes, and the engine's own reload of
the same weights from memory.

python -m benchmarks.broadcast [--repeats 5] [--bucket-mib 256] [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.broadcast_sides import NUM_REQUESTS, SHAPE, free_port
from benchmarks.side import Side, end_on_sigterm
from benchmarks.workload import side_env

GOALS = {"broadcast_over_slower_part": 1.25, "stall_over_reload": 1.2}
WARMUP = 1  # the first reload is several times slower than those after it


def main() -> None:
    """Measure bare gloo first, alone on the machine; then the engine, its three measurements in turns."""
    end_on_sigterm()
    options = _options()
    header = report.header("benchmarks.broadcast")
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as name:
        folder = Path(name)
        env = side_env(folder)
        with Side("benchmarks.broadcast_sides:builder", log=folder / "build.log", env=env) as build:
            num_bytes = build(folder=folder)
        print(f"model: {num_bytes / 1e9:.2f} GB", flush=True)
        runs = {"gloo": _gloo(folder, num_bytes, options)}
        runs |= _engine(folder, options)
    result = _summary(runs)
    _show(result)
    if options.write:
        workload = {"model": SHAPE, "dtype": "bfloat16", "num_bytes": num_bytes, "running_requests": NUM_REQUESTS}
        settings = {"bucket_mib": options.bucket_mib, "warmup_repeats": WARMUP, "measured_repeats": options.repeats}
        content = {**header, "workload": workload, **settings, "goals": GOALS, **result, "runs": runs}
        print(f"written: {report.write('broadcast', content)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.broadcast", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="measured repeats")
    parser.add_argument("--bucket-mib", type=int, default=256, help="weights.bucket_mib")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/broadcast.json")
    return parser.parse_args()


def _gloo(folder: Path, num_bytes: int, options: argparse.Namespace) -> list[dict[str, float]]:
    """Measure both ends of a bare broadcast and return the times of the slower end for each repeat."""
    port = free_port()
    sides = [
        Side(
            "benchmarks.broadcast_sides:gloo_side",
            log=folder / f"gloo{rank}.log",
            env=side_env(folder),
            port=port,
            rank=rank,
        )
        for rank in range(2)
    ]
    measured = []
    with contextlib.ExitStack() as stack:
        _at_once([partial(stack.enter_context, side) for side in sides])
        for _ in range(WARMUP + options.repeats):
            size = {"num_bytes": num_bytes, "bucket_bytes": options.bucket_mib * 2**20}
            both = _at_once([partial(side, **size) for side in sides])
            measured.append(max(both, key=lambda times: times["seconds"]))
    return measured


def _at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Return the results of calls that wait for one another, each made in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(lambda call: call(), calls))


def _engine(folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Measure the engine in turns, so that other load on the machine affects all measurements equally."""
    side = Side(
        "benchmarks.broadcast_sides:engine_side",
        log=folder / "engine.log",
        env=side_env(folder) | {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"},  # so that vLLM's worker accepts our function
        folder=folder,
        bucket_mib=options.bucket_mib,
    )
    runs: dict[str, list[dict[str, float]]] = {"update": [], "inflight": [], "reload": []}
    with side as engine:
        for repeat in range(WARMUP + options.repeats):
            for what, measured in runs.items():
                measured.append(engine(what=what))
            latest = {what: {key: round(s, 2) for key, s in measured[-1].items()} for what, measured in runs.items()}
            print(f"repeat {repeat}: {latest}", flush=True)
    return runs


def _summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the medians without the warm-up repeats, and the two ratios that have goals."""
    names = {"update": "seconds", "gloo": "seconds", "reload": "seconds", "inflight": "stalled_s"}
    medians = {what: statistics.median(times[key] for times in runs[what][WARMUP:]) for what, key in names.items()}
    return {
        "median_s": medians,
        "broadcast_over_slower_part": medians["update"] / max(medians["gloo"], medians["reload"]),
        "stall_over_reload": medians["inflight"] / medians["reload"],
    }


def _show(result: dict[str, Any]) -> None:
    made = report.table("seconds (median)", ["what", "seconds"])
    labels = {
        "gloo": "bare gloo broadcast of the same bytes",
        "reload": "the engine's own reload from memory",
        "update": "broadcast until the engine serves the new weights",
        "inflight": "generation paused by an in-flight update",
    }
    for what, label in labels.items():
        made.add_row(label, report.number(result["median_s"][what], 3))
    report.show(made)
    for name, goal in GOALS.items():
        print(f"{name}: {result[name]:.3f} (goal: at most {goal})")


if __name__ == "__main__":
    main()
