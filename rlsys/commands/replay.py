"""`rlsys replay RUN --step N`: loss and gradients of one step computed again, and compared with what the run had."""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlsys.commands.libraries import quiet_libraries
from rlsys.config.paths import expand
from rlsys.errors import ConfigError, RlsysError
from rlsys.run_folder.folder import RunFolder

if TYPE_CHECKING:
    from rlsys.learner.fingerprint import Fingerprint
    from rlsys.learner.step_dump import StepRecord

# How far float sums may differ that were added up in another order, by the learner's dtype, as shares of the value.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
# What sums of floats depend on, with its words.
MACHINE = {"device": "device", "instructions": "instructions", "threads": "threads", "torch": "PyTorch"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the step."""
    parser.description = (
        "Compute loss and gradients of one step again, in this process, from the batch that logging.replay=true has "
        "kept, and compare them with what the run had: bit for bit where one rank on a CPU made the step. The exit "
        "status is 1 where something differs."
    )
    parser.add_argument("folder", type=expand, metavar="RUN", help="folder of a run")
    parser.add_argument("--step", type=int, required=True, help="the step; its weights are those after the step before")


@dataclass(frozen=True)
class Row:
    """One number or tensor, as the run had it and as it was computed again; of a tensor the norm is shown."""

    what: str
    parameter: str  # empty for a number
    recorded: float | None
    replayed: float | None
    verdict: str  # `equal`, `near` or `differs`

    def __str__(self) -> str:
        of = "the norm was" if self.parameter else "the run had"
        name = f"{self.what} of {self.parameter}" if self.parameter else self.what
        return f"{name}: {of} {self.recorded!r}, now {self.replayed!r}"


def run(options: argparse.Namespace) -> None:
    """Replay a step and print what agreed. Raise RlsysError where something differs."""
    from rlsys.run_folder.replay import dumped_steps, read_dump, replayable_steps

    quiet_libraries()
    folder, step = RunFolder.open(options.folder), options.step
    known = replayable_steps(folder.path)
    if step not in known:
        there = f"these can: {', '.join(map(str, known))}" if known else "and no other"
        raise ConfigError(
            f"{folder.path}: step {step} cannot be replayed, {there}. A run with logging.replay=true keeps the batches "
            "of its first step and of each step that follows a checkpoint (checkpoint.every), and the newest of them "
            "can be replayed while their checkpoints are kept (checkpoint.keep)"
        )
    record, arrays = read_dump(dumped_steps(folder.path)[step])
    device = _prepare(record)

    from rlsys.learner.replay import ReplayRank
    from rlsys.learner.step_dump import StepRecord, machine

    rank = ReplayRank(record, arrays, folder.checkpoint(step - 1) if step > 1 else None)
    recorded, replayed = StepRecord.from_json(record["computed"]), rank.replay()
    reasons = _why_inexact(record, machine(device))
    tolerance = TOLERANCES[record["setup"]["learner"]["dtype"]] if reasons else 0.0
    print(f"{folder.path}: step {step}, from the weights before it")
    if reasons:
        print(f"compared to {tolerance:g} of each value and not bit for bit: {'; '.join(reasons)}")
    if len(replayed.updates) < len(recorded.updates):
        print("only the first update is replayed: one process cannot take over several ranks' optimizer for the others")
    _report(list(compare(recorded, replayed, tolerance)), step)


def _prepare(record: dict[str, Any]) -> Any:
    """Make this process compute as the ranks did, before DeepSpeed is imported; return the device."""
    threads = record["machine"]["threads"]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    is_on_gpu = record["machine"]["device"] == "cuda" and torch.cuda.is_available()
    os.environ["DS_ACCELERATOR"] = "cuda" if is_on_gpu else "cpu"
    return torch.device(os.environ["DS_ACCELERATOR"])


def _why_inexact(record: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return why sums may be rounded otherwise than in the run; empty where every bit must be the same."""
    then = record["machine"]
    reasons = [f"{word} {then[key]}, here {here[key]}" for key, word in MACHINE.items() if then[key] != here[key]]
    if record["num_ranks"] > 1:
        reasons.append(f"{record['num_ranks']} ranks, here one process")
    if here["device"] == "cuda":
        reasons.append("a GPU adds in no fixed order")
    return reasons


def compare(recorded: StepRecord, replayed: StepRecord, tolerance: float) -> Iterator[Row]:
    """Yield every quantity of two records of a step, in the order in which the step computed them.

    With a tolerance above 0 values may be near, as a share of their size. Updates that were not replayed are left out.
    """
    yield from _tensors("weights before the step", recorded.weights, replayed.weights, tolerance)
    for number, (then, now) in enumerate(zip(recorded.updates, replayed.updates, strict=False), start=1):
        for name, a, b in (("loss", then.loss, now.loss), ("gradient norm", then.grad_norm, now.grad_norm)):
            yield Row(f"update {number}, {name}", "", a, b, _verdict(a, b, tolerance))
        yield from _tensors(f"update {number}, gradient", then.gradients, now.gradients, tolerance)


def _verdict(a: float, b: float, tolerance: float) -> str:
    if a == b or (math.isnan(a) and math.isnan(b)):  # NaN is what the step had, and what it must have again
        return "equal"
    return "near" if abs(a - b) <= tolerance * max(abs(a), abs(b)) else "differs"


def _tensors(
    what: str, recorded: dict[str, Fingerprint], replayed: dict[str, Fingerprint], tolerance: float
) -> Iterator[Row]:
    for name in {**recorded, **replayed}:
        then, now = recorded.get(name), replayed.get(name)
        if then is None or now is None:
            yield Row(what, name, then.norm if then else None, now.norm if now else None, "differs")
        else:
            # Other bits may have the same norm and projection, so without a tolerance nothing else is asked.
            is_near = tolerance > 0 and then.is_near(now, tolerance)
            verdict = "equal" if then.bits == now.bits else "near" if is_near else "differs"
            yield Row(what, name, then.norm, now.norm, verdict)


def _report(rows: list[Row], step: int) -> None:
    """Print a line per quantity, one for all tensors of a kind. Raise RlsysError where something differs."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.what, []).append(row)
    width = max(map(len, lines))
    for what, of_kind in lines.items():
        counts = Counter(row.verdict for row in of_kind)
        text = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("equal", "near", "differs") if counts[verdict])
        if not of_kind[0].parameter:
            text = f"{of_kind[0].verdict}  {of_kind[0].recorded!r}"
        print(f"{what:<{width}}  {text}")
    wrong = [row for row in rows if row.verdict == "differs"]
    if wrong:
        raise RlsysError(
            f"step {step}: {len(wrong)} of {len(rows)} values differ. The first in the order of the computation is "
            f"{wrong[0]}. Where weights differ the checkpoint is another than the run had, else the batch is"
        )
    is_exact = all(row.verdict == "equal" for row in rows)
    print(f"step {step} is replayed {'bit for bit' if is_exact else 'within the tolerance'}")
