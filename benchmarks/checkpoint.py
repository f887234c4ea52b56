"""Seconds for which training waits for a checkpoint, against a checkpoint that is written before training goes on.

python -m benchmarks.checkpoint [--layers 24] [--repeats 3] [--write]

One rank with the sizes of Qwen2.5-0.5B and random weights, in bfloat16: DeepSpeed's files have the weights, float32
copies of them and Adam's moments, and the policy's folder has the weights. With `--layers 12` it takes two thirds of
the memory. "At once" is a save as that of a run's end: the rank writes all files, and the driver syncs and checks them.
Of the others, training waits for the call, and in the update that follows at once its optimizer step waits for the rest
of the copy. That update has a single response of 512 tokens, so that there is little else to do meanwhile. Everything
is on one machine. On a GPU the copy is made out of its memory, which has not been measured.

The first save of both kinds is left out of the medians. That of the copy is measured without an update: its memory, and
how long it takes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import report
from benchmarks.broadcast_sides import MAX_TOKENS, SHAPE
from rlsys.config.build_schema import TokenizerBuild
from rlsys.config.compose import load_config
from rlsys.learner.policy_rank import PolicyRank
from rlsys.learner.rank_batch import RankBatch
from rlsys.learner.setup import PolicySetup
from rlsys.models.tiny import build_tokenizer
from rlsys.run_folder.manifest import seal, size_of
from rlsys.types import Coefficients, ExperienceRow, Trajectory, VersionSpan

GOAL = 0.1
LENGTH = 512  # tokens of the response that the rank trains on


def main() -> None:
    """Measure both ways in turns, and show their seconds and the rank's memory."""
    parser = argparse.ArgumentParser("python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/checkpoint.json")
    options = parser.parse_args()
    header = report.header("benchmarks.checkpoint")
    os.environ |= {"DS_ACCELERATOR": "cpu"}
    shape = {**SHAPE, "num_hidden_layers": options.layers}
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as folder:
        rank = _rank(Path(folder), shape)
        saved = Path(folder) / "saved"
        _saved(rank, saved, is_late=False)
        first = _saved(rank, saved, is_late=True)
        at_once, beside = [], []
        for _ in range(options.repeats):
            alone_s = _update(rank)
            at_once.append({**_saved(rank, saved, is_late=False), "update_alone_s": alone_s})
            beside.append(_saved(rank, saved, is_late=True, has_update=True))
    before, alone = _median(at_once, "done_s"), _median(at_once, "update_alone_s")
    called, copy, done = (_median(beside, name) for name in ("called_s", "copy_s", "done_s"))
    waits = _median(beside, "waits_s")
    shown = report.table(f"a checkpoint of {first['bytes'] / 1e9:.1f} GB", ["", "result"])
    shown.add_row("seconds of a save at once", report.number(before))
    shown.add_row("seconds of the call that begins a copy", report.number(called))
    shown.add_row("seconds for which the update's optimizer step waits", report.number(copy))
    shown.add_row(f"both, over a save at once (goal {GOAL})", report.number(waits / before, 3))
    shown.add_row("seconds of an update alone", report.number(alone))
    shown.add_row("the same beside a copy that is written", report.number(_median(beside, "update_s")))
    shown.add_row("seconds until the checkpoint is there", report.number(done))
    shown.add_row("the copy in host memory, GB", report.number(first["held_bytes"] / 1e9))
    report.show(shown)
    if options.write:
        content = {**header, "model": shape, "dtype": "bfloat16", "at_once": at_once, "beside_update": beside}
        content |= {"without_update": first, "waits_over_at_once": waits / before}
        print(f"written: {report.write('checkpoint', content)}")


def _median(rows: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def _rank(folder: Path, shape: dict[str, Any]) -> PolicyRank:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    Qwen2ForCausalLM(Qwen2Config(**shape)).save_pretrained(folder / "model")
    torch.set_default_dtype(torch.float32)
    build_tokenizer(TokenizerBuild()).save_pretrained(folder / "model")
    config = load_config(["learner.dtype=bfloat16", "weights.verify=false", "algorithm.kl.coef=0"])
    rank = PolicyRank(0, PolicySetup.from_config(config, str(folder / "model"), MAX_TOKENS))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    rank.start("127.0.0.1", port)
    _update(rank)
    return rank


def _update(rank: PolicyRank) -> float:
    """Train on one short response, and return the seconds. Adam's moments come with the first update."""
    mask = np.arange(LENGTH) > 0
    logprobs = np.where(mask, -12.0, 0.0).astype(np.float32)
    sampled = Trajectory(np.full(LENGTH, 5, np.int32), mask, logprobs, (VersionSpan(0, 1, LENGTH),), "stop", engine=0)
    row = ExperienceRow(0, 0, 0, 1.0, 1.0, LENGTH, LENGTH - 1)
    batch = RankBatch(((row,),), (LENGTH - 1,), Coefficients(0.0, 0.0), 0, [[(0, 0)]], False, False)
    start = time.perf_counter()
    metrics, _ = rank.update(batch, [sampled])
    if metrics["policy/updates_applied"] != 1.0:
        raise RuntimeError(f"the update was not applied: {metrics}")
    return time.perf_counter() - start


def _saved(rank: PolicyRank, folder: Path, *, is_late: bool, has_update: bool = False) -> dict[str, float]:
    """Save once, and remove it; return seconds, the checkpoint's bytes and the most that the rank held for it."""
    folder.mkdir()
    rank.take_spans()
    before = held = _resident()
    start = time.perf_counter()
    rank.save(str(folder), is_late)
    found = {"called_s": time.perf_counter() - start}
    if has_update:
        found["update_s"] = _update(rank)
        found["copy_s"] = sum(end - start for name, start, end in rank.take_spans() if name == "copy")
        found["waits_s"] = found["called_s"] + found["copy_s"]
    while (failures := rank.saved()) is None:
        held = max(held, _resident())
        time.sleep(0.01)
    if failures:
        raise RuntimeError(f"not saved: {failures}")
    found["written_s"] = time.perf_counter() - start
    seal(folder)
    found |= {"done_s": time.perf_counter() - start, "bytes": size_of(folder)}
    found |= {"held_bytes": held - before, "left_bytes": _resident() - before}
    shutil.rmtree(folder)
    return found


def _resident() -> int:
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


if __name__ == "__main__":
    main()
