"""Training steps until the quickstart reaches an accuracy of 0.80, with a `train.max_staleness` of 0, 1 and 4.

python -m benchmarks.staleness [hydra overrides] [--seeds 0 1 2] [--ahead 0 1 4] [--write]

It shows whether data from older policies slows learning, so steps are counted and not seconds. Runs the quickstart with
an evaluation every ten steps; a run ends at the first evaluation with 0.80 of the held-out sums right.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report

BAR = 0.80  # accuracy at which a run ends
GOAL = 1.25  # most steps over the synchronous run's
EVERY = 10  # steps from one evaluation to the next
POLL_S = 1.0
STOP_S = 60.0


def main() -> None:
    """Run every seed with every staleness bound and compare it with the synchronous run of the same seed."""
    parser = argparse.ArgumentParser("python -m benchmarks.staleness", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ahead", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/staleness.json")
    options, overrides = parser.parse_known_args()
    header = report.header("benchmarks.staleness")
    found = {}
    for seed, ahead in itertools.product(options.seeds, options.ahead):
        found[seed, ahead] = run(seed, ahead, overrides)
        print(f"seed {seed}, {ahead} ahead: {found[seed, ahead]['steps']} steps", flush=True)
    shown = report.table(
        f"steps to {BAR:.0%}",
        ["seed", "max_staleness", "steps", f"over max_staleness 0 (goal {GOAL})", "staleness, mean and max"],
    )
    runs = []
    for (seed, ahead), result in found.items():
        base = found.get((seed, 0), {}).get("steps")
        ratio = result["steps"] / base if base and result["steps"] else None
        runs.append({"seed": seed, "max_staleness": ahead, **result, "over_synchronous": ratio})
        stale = f"{result['staleness_mean']:.2f}, {result['staleness_max']:.0f}"
        shown.add_row(str(seed), str(ahead), report.number(result["steps"], 0), report.number(ratio), stale)
    report.show(shown)
    if options.write:
        print(f"written: {report.write('staleness', {**header, 'overrides': overrides, 'runs': runs})}")


def run(seed: int, ahead: int, overrides: list[str]) -> dict[str, Any]:
    """Return the steps until BAR (None if it was not reached), the evaluations until then, and the data's staleness."""
    with tempfile.TemporaryDirectory(prefix="rlsys-staleness-") as folder:
        run_dir = Path(folder) / "run"
        settings = [f"seed={seed}", f"train.max_staleness={ahead}", f"eval.every={EVERY}", f"run_dir={run_dir}"]
        command = [sys.executable, "-m", "rlsys.cli", "train", "experiment=quickstart", *settings, *overrides]
        with (Path(folder) / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            while process.poll() is None and _reached(_rows(run_dir)) is None:
                time.sleep(POLL_S)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(STOP_S)
        rows = _rows(run_dir)
        if _reached(rows) is None and process.returncode:
            output = (Path(folder) / "log").read_text()[-3000:]
            what = f"seed={seed} train.max_staleness={ahead}"
            raise RuntimeError(f"the run with {what} failed with exit code {process.returncode}:\n{output}")
    steps = [row for row in rows if row["step"] > 0]
    return {
        "steps": _reached(rows),
        "curve": [(row["step"], row["eval/accuracy"]) for row in rows if "eval/accuracy" in row],
        "staleness_mean": sum(row["rollout/staleness/mean"] for row in steps) / len(steps),
        "staleness_max": max(row["rollout/staleness/max"] for row in steps),
    }


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _reached(rows: list[dict[str, Any]]) -> int | None:
    return next((int(row["step"]) for row in rows if row.get("eval/accuracy", 0.0) >= BAR), None)


if __name__ == "__main__":
    main()
