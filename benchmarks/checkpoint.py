"""Seconds for which training waits for a checkpoint, against a checkpoint that is written before training goes on.

python -m benchmarks.checkpoint [--layers 24] [--repeats 3] [--write]

One rank with the sizes of Qwen2.5-0.5B and random weights, in bfloat16: DeepSpeed's files have the weights, float32
copies of them and Adam's moments, and the policy's folder has the weights. With `--layers 12` it takes two thirds of
the memory. "At once" is a save without the copy, as that of a run's end: the rank writes all files, and the driver
syncs and checks them. Everything is on one machine. On a GPU the copy is made out of its memory, which has not been
measured.

The first save of both kinds is left out of the medians, and the wait for the first copy shown by itself: memory that a
virtual machine gets from its host anew takes many times longer than what it has.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import tempfile
import time
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
LENGTH = 8  # tokens of the response that the rank trains on


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
        saves = range(2 * options.repeats + 2)
        rows = [_measured(rank, Path(folder) / "saved", at_once=number % 2 == 0) for number in saves]
    first, at_once, copied = rows[1], rows[2::2], rows[3::2]  # the first of both kinds warm up
    before, waits, done = (
        statistics.median(row[name] for row in kept)
        for name, kept in (("done_s", at_once), ("waits_s", copied), ("done_s", copied))
    )
    shown = report.table(f"a checkpoint of {copied[0]['bytes'] / 1e9:.1f} GB", ["", "result"])
    shown.add_row("seconds of a save at once", report.number(before))
    shown.add_row("seconds for which training waits", report.number(waits))
    shown.add_row(f"the same, over a save at once (goal {GOAL})", report.number(waits / before, 3))
    shown.add_row("seconds for which training waits, of the first copy", report.number(first["waits_s"]))
    shown.add_row("seconds until the checkpoint is there", report.number(done))
    shown.add_row("the copy in host memory, GB", report.number(copied[0]["held_bytes"] / 1e9))
    report.show(shown)
    if options.write:
        content = {
            **header,
            "model": shape,
            "dtype": "bfloat16",
            "at_once": at_once,
            "copied": copied,
            "first_copied": first,
        }
        content |= {"waits_over_at_once": waits / before}
        print(f"written: {report.write('checkpoint', content)}")


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


def _update(rank: PolicyRank) -> None:
    """Train on one short response: Adam's moments come with the first update."""
    mask = np.arange(LENGTH) > 0
    logprobs = np.where(mask, -12.0, 0.0).astype(np.float32)
    sampled = Trajectory(np.full(LENGTH, 5, np.int32), mask, logprobs, (VersionSpan(0, 1, LENGTH),), "stop", engine=0)
    row = ExperienceRow(0, 0, 0, 1.0, 1.0, LENGTH, LENGTH - 1)
    batch = RankBatch(((row,),), (LENGTH - 1,), Coefficients(0.0, 0.0), 0, [[(0, 0)]], False, False)
    metrics, _ = rank.update(batch, [sampled])
    if metrics["policy/updates_applied"] != 1.0:
        raise RuntimeError(f"the update was not applied: {metrics}")


def _measured(rank: PolicyRank, folder: Path, *, at_once: bool) -> dict[str, float]:
    """Save once, and remove it; return seconds, the checkpoint's bytes and those that the rank held for it."""
    folder.mkdir()
    before = _resident()
    start = time.perf_counter()
    rank.save(str(folder), not at_once)
    waits_s, held = time.perf_counter() - start, _resident() - before
    while (failures := rank.saved()) is None:
        time.sleep(0.01)
    if failures:
        raise RuntimeError(f"not saved: {failures}")
    written_s = time.perf_counter() - start
    seal(folder)
    found = {"waits_s": waits_s, "written_s": written_s, "done_s": time.perf_counter() - start}
    found |= {"bytes": size_of(folder), "held_bytes": held, "left_bytes": _resident() - before}
    shutil.rmtree(folder)
    return found


def _resident() -> int:
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


if __name__ == "__main__":
    main()
