"""Held-out accuracy that each algorithm reaches on the quickstart's task, over steps and seconds.

python -m benchmarks.algorithms [--only grpo dapo ...] [--write]

Runs `experiment=quickstart` with `algorithm=NAME`: three seeds of grpo, one of each other algorithm; 3 to 5 minutes
per run on two cores. `--write` adds the algorithms that were run to benchmarks/results/algorithms.json and keeps the
other entries.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks import report
from benchmarks.learning import run_seed, summary

# Seeds and overrides of each algorithm.
RUNS: dict[str, tuple[list[int], list[str]]] = {
    "grpo": ([0, 1, 2], []),
    "dapo": ([0], []),
    "rloo": ([0], []),
    "reinforce_pp": ([0], []),
    "gspo": ([0], []),
    "cispo": ([0], []),
    "ppo": ([0], ["critic.lr=1e-3"]),  # the critic of so small a policy needs a higher learning rate than the default
}


def main() -> None:
    """Run the selected algorithms and show the first and last accuracy of every run."""
    parser = argparse.ArgumentParser("python -m benchmarks.algorithms", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS), help="run only these algorithms")
    parser.add_argument("--write", action="store_true", help="add to benchmarks/results/algorithms.json")
    options = parser.parse_args()
    header = report.header("benchmarks.algorithms")
    shown = report.table(
        "experiment=quickstart", ["algorithm, seed", "first", "last", "reached 0.8 at step", "after s", "s per step"]
    )
    for name in options.only:
        seeds, overrides = RUNS[name]
        command = ["experiment=quickstart", f"algorithm={name}", *overrides]
        entry: dict[str, Any] = {**header, "overrides": command, "seeds": {}}
        for seed in seeds:
            result = entry["seeds"][str(seed)] = summary(run_seed(seed, command))
            step, seconds = next(((s, t) for s, t, a in result["curve"] if a >= 0.8), (None, None))
            cells = [report.number(result[key], 3) for key in ("accuracy_first", "accuracy_last")]
            cells += [report.number(step, 0), report.number(seconds, 0), report.number(result["step_median_s"])]
            shown.add_row(f"{name}, {seed}", *cells)
        if options.write:
            add(name, entry)
    report.show(shown)


def add(name: str, entry: dict[str, Any]) -> None:
    """Store one algorithm's runs in the results file and keep the other algorithms' entries."""
    path = report.RESULTS / "algorithms.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    print(f"written: {report.write('algorithms', {**content, name: entry})}")


if __name__ == "__main__":
    main()
