"""Seconds per training step and stage, rlsys compared with TRL's GRPOTrainer.

Both run on the same machine with the same model, prompts and response lengths, and make their steps in turns: while one
makes a step, the other waits. A virtual machine's speed changes from minute to minute, and so it changes for both; the
ratio is the median over pairs of steps that follow each other.

python -m benchmarks.end_to_end [--cases 64 256 natural long_prompt] [--steps 6] [--warmup 2] [--only rlsys|trl] [--kl]
    [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.side import Side, end_on_sigterm
from benchmarks.turns import Turns
from benchmarks.workload import CASES, KL_COEF, Workload, build_workload, side_env

TARGETS = {"rlsys": "benchmarks.rlsys_side:rlsys_side", "trl": "benchmarks.trl_side:trl_side"}
STAGES = ("rollout", "reward", "reference", "update", "broadcast")


def main() -> None:
    """Measure every case."""
    end_on_sigterm()
    options = _options()
    header = report.header("benchmarks.end_to_end")
    kl = KL_COEF if options.kl else 0.0
    num_steps = options.warmup + options.steps
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        for name in options.cases:
            case = CASES[name]
            workload = build_workload(Path(folder) / name, num_steps, case.prompt_tokens)
            sides = [options.only] if options.only else list(TARGETS)
            print(f"{' and '.join(sides)}, {case} ...", flush=True)
            seconds = _measure(sides, workload, case=case, num_steps=num_steps, kl=kl)
            run: dict[str, Any] = {
                side: {"seconds": of_side, "median_s": _medians(of_side, options.warmup)}
                for side, of_side in seconds.items()
            }
            if sides == list(TARGETS):
                run["trl_over_rlsys"] = {key: _ratio(seconds, key, options.warmup) for key in ("step", "step_to_step")}
            run["workload"] = {
                **workload.describe(),
                "new_tokens": case.tokens,
                "end_by_themselves": case.natural,
                "kl_coef": kl,
            }
            _show(name, run, kl)
            if options.write:  # after each case, as a case takes minutes
                counts = {"warmup_steps": options.warmup, "measured_steps": options.steps}
                path = report.update("end_to_end_kl" if kl else "end_to_end", {name: {**header, **counts, **run}})
                print(f"written: {path}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="cases to measure")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a run")
    parser.add_argument("--warmup", type=int, default=2, help="steps of a run before the measured ones, not counted")
    parser.add_argument("--only", choices=sorted(TARGETS), help="measure one side")
    parser.add_argument("--kl", action="store_true", help=f"use a reference model and a KL coefficient of {KL_COEF}")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/end_to_end[_kl].json")
    return parser.parse_args()


def _measure(sides: Sequence[str], workload: Workload, **settings: Any) -> dict[str, dict[str, Any]]:
    """Run the sides' steps, in turns where there are two; return what each measured."""
    turns = Turns.of_two(workload.folder) if len(sides) == 2 else (None,)
    with contextlib.ExitStack() as stack:
        calls = {}
        pool = stack.enter_context(ThreadPoolExecutor(len(sides)))
        for name, its_turns in zip(sides, turns, strict=True):
            log = workload.folder / f"{name}.log"
            side = stack.enter_context(Side(TARGETS[name], log=log, env=side_env(workload.folder)))
            calls[name] = pool.submit(side, workload=workload, turns=its_turns, **settings)
        # The first failure ends both sides: the other would wait for its turn.
        wait(calls.values(), return_when=FIRST_EXCEPTION)
        for call in calls.values():
            if call.done():
                call.result()
        return {name: call.result() for name, call in calls.items()}


def _medians(raw: dict[str, Any], warmup: int) -> dict[str, float]:
    """Return the median seconds over the steps after the warm-up, by stage and for the whole step."""
    names = ("step", "step_to_step", "response_tokens")
    series = {**raw["stages"], **{name: raw[name] for name in names}}
    return {name: statistics.median(values[warmup:]) for name, values in series.items() if values[warmup:]}


def _ratio(seconds: dict[str, dict[str, Any]], key: str, warmup: int) -> float:
    """Return TRL's seconds over rlsys's, the median over pairs of steps."""
    pairs = zip(seconds["trl"][key], seconds["rlsys"][key], strict=True)
    return statistics.median([trl / rlsys for trl, rlsys in pairs][warmup:])


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
