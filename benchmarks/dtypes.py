"""Speed of the learner's forward and backward in bfloat16 compared with float32, on a CPU that has bfloat16.

python -m benchmarks.dtypes [--threads 2] [--repeats 5] [--write]

Both dtypes compute the same packed rows. `tiny` is the model of the other benchmarks; `wide` has two layers of the size
that a model of half a billion parameters has, where matrix products take a larger share of the time. The rows are those
of benchmarks.packing, as many as fit into one microbatch.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import asdict

import torch

from benchmarks import report
from benchmarks.packing import forward_backward_s, ragged_rows
from benchmarks.workload import MODEL
from rlsys.config.build_schema import ModelBuild
from rlsys.models.packing import microbatches
from rlsys.models.policy import DTYPES, PolicyModel
from rlsys.models.tiny import build_model, build_tokenizer

MAX_TOKENS = 4096
WIDE = ModelBuild(hidden_size=896, num_layers=2, num_heads=14, num_kv_heads=2, intermediate_size=4864, max_context=1024)
MODELS = {"tiny": MODEL, "wide": WIDE}
DTYPE_NAMES = ("float32", "bfloat16")


def main() -> None:
    """Measure both models in both dtypes, in turns, and show the trained tokens per second."""
    parser = argparse.ArgumentParser("python -m benchmarks.dtypes", description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/dtypes.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.sched_setaffinity(0, set(range(options.threads)))
    header = report.header("benchmarks.dtypes")
    rows = ragged_rows()
    part = microbatches(rows, MAX_TOKENS, "packed")[0]
    sides = {(name, dtype): _policy(MODELS[name], dtype) for name in MODELS for dtype in DTYPE_NAMES}
    seconds: dict[str, list[float]] = {f"{name}, {dtype}": [] for name, dtype in sides}
    for repeat in range(options.repeats + 1):
        for (name, dtype), policy in sides.items():
            value = forward_backward_s(policy, rows, [part], "packed")
            if repeat:  # the first round warms up
                seconds[f"{name}, {dtype}"].append(value)
    tokens = sum(int(rows[i].loss_mask.sum()) for i in part)
    rates = {side: tokens / statistics.median(values) for side, values in seconds.items()}
    ratios = {name: rates[f"{name}, bfloat16"] / rates[f"{name}, float32"] for name in MODELS}
    shown = report.table(f"{options.threads} threads, trained tokens/s", ["", *DTYPE_NAMES, "bfloat16 / float32"])
    for name in MODELS:
        each = [report.number(rates[f"{name}, {dtype}"], 0) for dtype in DTYPE_NAMES]
        shown.add_row(name, *each, report.number(ratios[name]))
    report.show(shown)
    if options.write:
        models = {name: asdict(model) for name, model in MODELS.items()}
        content = {**header, "threads": options.threads, "models": models, "seconds": seconds}
        print(f"written: {report.write('dtypes', {**content, 'trained_tokens_per_s': rates, 'ratios': ratios})}")


def _policy(shape: ModelBuild, dtype: str) -> PolicyModel:
    return PolicyModel(build_model(shape, build_tokenizer(shape.tokenizer), seed=0).to(DTYPES[dtype]), "packed").eval()


if __name__ == "__main__":
    main()
