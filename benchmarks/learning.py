"""Held-out accuracy and reward of an experiment at its start and end, over several seeds.

python -m benchmarks.learning NAME [--seeds 0 1 2] [--write] [hydra overrides, such as experiment=quickstart]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report


def main() -> None:
    """Run every seed to its end and show the first and last accuracy and reward."""
    parser = argparse.ArgumentParser("python -m benchmarks.learning", description=__doc__)
    parser.add_argument("name", help="name of the result, written to benchmarks/results/learning_NAME.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help="write the result")
    options, overrides = parser.parse_known_args()
    header = report.header("benchmarks.learning")
    shown = report.table(
        f"{options.name}: {' '.join(overrides)}",
        [
            "seed",
            "accuracy first",
            "last",
            "reward first",
            "last",
            "steps",
            "s per step",
            "training s",
            "99.9% |dlogp|",
        ],
    )
    seeds = {}
    for seed in options.seeds:
        result = seeds[str(seed)] = summary(run_seed(seed, overrides))
        cells = [report.number(result[key], 3) for key in ("accuracy_first", "accuracy_last")]
        cells += [report.number(result[key], 3) for key in ("reward_first", "reward_last")]
        cells += [report.number(result["steps"], 0), report.number(result["step_median_s"])]
        cells += [report.number(result["training_s"], 0), f"{result['logprob_diff_max']:.1e}"]
        shown.add_row(str(seed), *cells)
    report.show(shown)
    if options.write:
        print(f"written: {report.write(f'learning_{options.name}', {**header, 'seeds': seeds})}")


def run_seed(seed: int, overrides: list[str]) -> list[dict[str, Any]]:
    """Train one whole run and return the rows of its metrics.jsonl."""
    with tempfile.TemporaryDirectory(prefix="rlsys-learning-") as folder:
        command = [sys.executable, "-m", "rlsys.cli", "train", f"seed={seed}", f"run_dir={folder}/run", *overrides]
        subprocess.run(command, check=True)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return start, end and curve of one run; rewards are means over the first and last ten steps, times in seconds."""
    steps = [row for row in rows if row["step"] > 0]
    evaluated = [row for row in rows if "eval/accuracy" in row]
    rewards = [row["reward/total/mean"] for row in steps]
    return {
        "steps": len(steps),
        "accuracy_first": evaluated[0]["eval/accuracy"] if evaluated else None,
        "accuracy_last": evaluated[-1]["eval/accuracy"] if evaluated else None,
        "reward_first": statistics.mean(rewards[:10]),
        "reward_last": statistics.mean(rewards[-10:]),
        "step_median_s": statistics.median(row["time/step_s"] for row in steps),
        "training_s": sum(row["time/step_s"] + row.get("time/eval_s", 0.0) for row in steps),
        "logprob_diff_max": max(row["sync/logprob_abs_diff/p999"] or 0.0 for row in steps),
        "curve": curve(rows),
    }


def curve(rows: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    """Return (step, seconds of training until then, accuracy) for every evaluation."""
    points, seconds = [], 0.0
    for row in rows:
        seconds += row.get("time/step_s", 0.0)
        if "eval/accuracy" in row:
            points.append((row["step"], round(seconds, 1), row["eval/accuracy"]))
    return points


if __name__ == "__main__":
    main()
