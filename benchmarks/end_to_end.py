"""Seconds per training step and stage, rlsys compared with TRL's GRPOTrainer.

Both run on the same machine with the same model, prompts and response lengths, in turn: a virtual machine's speed
changes from minute to minute, and with more rounds it changes for both.

python -m benchmarks.end_to_end [--cases 64 256 natural long_prompt] [--rounds 1] [--steps 6] [--warmup 2]
    [--only rlsys|trl] [--kl] [--write]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.side import Side, end_on_sigterm
from benchmarks.workload import CASES, KL_COEF, Workload, build_workload, side_env

TARGETS = {"rlsys": "benchmarks.rlsys_side:rlsys_side", "trl": "benchmarks.trl_side:trl_side"}
STAGES = ("rollout", "reward", "reference", "update", "broadcast")


def main() -> None:
    """Measure every case on both sides, one after the other."""
    end_on_sigterm()
    options = _options()
    header = report.header("benchmarks.end_to_end")
    kl = KL_COEF if options.kl else 0.0
    num_steps = options.warmup + options.steps
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        for name in options.cases:
            case = CASES[name]
            workload = build_workload(Path(folder) / name, num_steps, case.prompt_tokens)
            run: dict[str, Any] = {}
            sides = [options.only] if options.only else list(TARGETS)
            seconds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for side in sides * options.rounds:
                print(f"{side}, {case} ...", flush=True)
                seconds[side].append(_measure(side, workload, case=case, num_steps=num_steps, kl=kl))
            for side, rounds in seconds.items():
                run[side] = {"seconds": rounds, "median_s": _medians(rounds, options.warmup)}
            if sides == list(TARGETS):
                run["trl_over_rlsys"] = {
                    key: run["trl"]["median_s"][key] / run["rlsys"]["median_s"][key] for key in ("step", "step_to_step")
                }
            run["workload"] = {
                **workload.describe(),
                "new_tokens": case.tokens,
                "end_by_themselves": case.natural,
                "kl_coef": kl,
            }
            _show(name, run, kl)
            if options.write:  # after each case, as a case takes minutes
                counts = {"rounds": options.rounds, "warmup_steps": options.warmup, "measured_steps": options.steps}
                path = report.update("end_to_end_kl" if kl else "end_to_end", {name: {**header, **counts, **run}})
                print(f"written: {path}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="cases to measure")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side, in turn")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a run")
    parser.add_argument("--warmup", type=int, default=2, help="steps of a run before the measured ones, not counted")
    parser.add_argument("--only", choices=sorted(TARGETS), help="measure one side")
    parser.add_argument("--kl", action="store_true", help=f"use a reference model and a KL coefficient of {KL_COEF}")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/end_to_end[_kl].json")
    return parser.parse_args()


def _measure(side: str, workload: Workload, **settings: Any) -> dict[str, Any]:
    log = workload.folder / f"{side}.log"
    with Side(TARGETS[side], log=log, env=side_env(workload.folder)) as measure:
        return measure(workload=workload, **settings)


def _medians(rounds: list[dict[str, Any]], warmup: int) -> dict[str, float]:
    """Return the median seconds over the steps after each round's warm-up, by stage and for the whole step."""
    names = ("step", "step_to_step", "response_tokens")
    series = [{**raw["stages"], **{name: raw[name] for name in names}} for raw in rounds]
    steps = {name: [value for each in series for value in each[name][warmup:]] for name in series[0]}
    return {name: statistics.median(values) for name, values in steps.items() if values}


def _show(name: str, run: dict[str, Any], kl: float) -> None:
    made = report.table(f"{CASES[name]}, KL coefficient {kl:g}", ["median s", *TARGETS, "trl / rlsys"])
    medians = {side: run.get(side, {}).get("median_s", {}) for side in TARGETS}
    for row in (*STAGES, "step", "step_to_step"):
        if row == "step":
            made.add_section()
        cells = [medians[side].get(row) for side in TARGETS]
        ratio = run.get("trl_over_rlsys", {}).get(row)
        made.add_row(row.replace("_", " "), *(report.number(cell, 3) for cell in cells), report.number(ratio))
    report.show(made)


if __name__ == "__main__":
    main()
