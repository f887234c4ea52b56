"""Seconds from the command to the first training step, rlsys compared with TRL on the same model, and memory by role.

python -m benchmarks.startup [--rounds 3] [--steps 20] [--write]

Everything is cached before: the model, and what libraries compile. Both sides are commands of their own, run in turns.
rlsys trains `experiment=quickstart`, and evaluates it before and after the step. TRL trains the same model on as many
sums, without evaluation. A further run of rlsys trains `--steps` steps while its processes' memory is read.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.side import end_on_sigterm
from benchmarks.workload import side_env
from rlsys.runtime.processes import TAG

# The beginning of the line that either command prints when a stage is done.
STAGES = {
    "checked": "run ",
    "ready": "ready: ",
    "evaluated": "step 0/",
    "first step": "step 1/",
}
ROLES = {
    "ray::RolloutWorker": "engine",
    "ray::PolicyRank": "learner",
    "ray::ReferenceWorker": "reference",
    "ray::ScoringWorker": "scoring",
    "rlsys.scoring.process": "scoring",
    "fork_server.py": "import servers",
}
POLL_S = 0.5


def main() -> None:
    """Measure both sides in turns, then memory."""
    end_on_sigterm()
    parser = argparse.ArgumentParser("python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="measured runs of each side, after one that is not")
    parser.add_argument("--steps", type=int, default=20, help="steps of the run whose memory is read")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/startup.json")
    options = parser.parse_args()
    header = report.header("benchmarks.startup")
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as name:
        folder = Path(name)
        times, model = measure_times(folder, options.rounds)
        memory = measure_memory(folder, options.steps)
    ratio = statistics.median(times["rlsys"]["first step"]) / statistics.median(times["trl"]["first step"])
    show(times, memory, ratio)
    if options.write:
        result = {"model": model, "seconds": times, "rlsys_over_trl": ratio, "peak_mib": memory}
        print(f"written: {report.write('startup', {**header, **result})}")


def measure_times(folder: Path, rounds: int) -> tuple[dict[str, dict[str, list[float]]], str]:
    """Return each side's seconds from its command to each stage, by round, and the model that both train."""
    times: dict[str, dict[str, list[float]]] = {"rlsys": {}, "trl": {}}
    model = ""
    for number in range(rounds + 1):  # the first builds what is cached
        lines = dict(timed_lines(quickstart(folder / f"rlsys-{number}", 1), folder))
        model = next(line.split()[1] for line in lines if line.startswith("model "))
        found = {"rlsys": lines}
        command = [sys.executable, "-m", "benchmarks.startup_trl", model, str(folder / f"trl-{number}")]
        found["trl"] = dict(timed_lines(command, folder))
        for side, seen in found.items() if number > 0 else ():
            for stage, at in stages_of(seen).items():
                times[side].setdefault(stage, []).append(at)
        print(f"round {number}: { ({side: times[side].get('first step') for side in times}) }", flush=True)
    return times, Path(model).name


def stages_of(lines: dict[str, float]) -> dict[str, float]:
    """Return when each stage was done, of those that the lines name."""
    return {stage: at for line, at in lines.items() for stage, start in STAGES.items() if line.startswith(start)}


def quickstart(run_dir: Path, num_steps: int) -> list[str]:
    """Return the command that trains the quickstart for some steps."""
    cli = [sys.executable, "-m", "rlsys.cli", "train", "experiment=quickstart"]
    return [*cli, f"train.num_steps={num_steps}", f"run_dir={run_dir}"]


def timed_lines(command: list[str], folder: Path) -> Iterator[tuple[str, float]]:
    """Run a command; yield each line that it prints with the seconds since its start. Raises if it fails."""
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=side_env(folder)
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.rstrip(), time.perf_counter() - started
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}")


def measure_memory(folder: Path, num_steps: int) -> dict[str, float]:
    """Return the highest memory of each role's processes and of all together, in MiB, pages that are shared divided."""
    highest: dict[str, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL_S):
            now = memory_by_role()
            for role, size in {**now, "all together": sum(now.values())}.items():
                highest[role] = max(highest.get(role, 0.0), size)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        list(timed_lines(quickstart(folder / "memory", num_steps), folder))
    finally:
        done.set()
        thread.join()
    return highest


def memory_by_role() -> dict[str, float]:
    """Return the proportional set size of the processes of runs on this machine, by role, in MiB."""
    sizes: dict[str, float] = {}
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            is_driver = "rlsys.cli train" in command and "experiment=quickstart" in command
            if not (is_driver or TAG in process.environ()):
                continue
            size = process.memory_full_info().pss / 2**20
        except psutil.Error:
            continue
        role = "driver" if is_driver else next((ROLES[name] for name in ROLES if name in command), "Ray's own")
        sizes[role] = sizes.get(role, 0.0) + size
    return sizes


def show(times: dict[str, dict[str, list[float]]], memory: dict[str, float], ratio: float) -> None:
    """Print both tables."""
    seconds = report.table("seconds from the command, medians", ["stage", "rlsys", "TRL"])
    for stage in STAGES:
        cells = [statistics.median(times[side][stage]) if stage in times[side] else None for side in ("rlsys", "trl")]
        seconds.add_row(stage, *(report.number(cell) for cell in cells))
    seconds.add_row("first step, rlsys over TRL", report.number(ratio), "")
    report.show(seconds)
    sizes = report.table("peak memory of rlsys, MiB", ["role", "MiB"])
    for role, size in sorted(memory.items(), key=lambda entry: entry[1]):
        sizes.add_row(role, report.number(size, 0))
    report.show(sizes)


if __name__ == "__main__":
    main()
