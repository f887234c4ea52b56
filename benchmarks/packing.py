"""Useful tokens per second of forward and backward, for packed and padded rows and for shared and repeated prompts.

python -m benchmarks.packing [--threads 2] [--repeats 5] [--write]

Useful tokens are the trained ones, those of the responses. Two sets of rows are measured:

    ragged    64 trajectories whose mean length is 0.4 of the longest: packed, compared with batches padded to their
              longest row, with rows in the given order and with rows sorted by length
    grouped   8 groups of 8 responses of 64 tokens to a prompt of 512 tokens: all 8 after one copy of the prompt
              (shared), compared with one copy of the prompt per response (repeated)

Every round measures all sides once, so that other load on the machine affects them equally. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.workload import MODEL
from rlsys.models.packing import TokenRow, microbatches, token_batch
from rlsys.models.padding import split_microbatches
from rlsys.models.policy import PolicyModel
from rlsys.models.tiny import build_model, build_tokenizer

MAX_TOKENS = 8192
LONGEST = 1024
GOALS = {"packed / padded": 1.8, "shared / repeated": 3.0}


def ragged_rows() -> list[TokenRow]:
    """Return 64 trajectories with prompts of 32 tokens; the longest has LONGEST tokens, the mean is 0.4 of that."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.gamma(1.6, 0.25 * LONGEST, size=64).astype(int), 64, LONGEST)
    lengths[0] = LONGEST
    while lengths.mean() > 0.4 * LONGEST:
        lengths[int(lengths[1:].argmax()) + 1] //= 2
    return [_row(generator, prompt=32, length=int(length), group=group) for group, length in enumerate(lengths)]


def grouped_rows() -> list[TokenRow]:
    """Return 8 groups of 8 trajectories: a prompt of 512 tokens per group, and responses of 64 tokens."""
    generator = np.random.default_rng(1)
    made = []
    for group in range(8):
        first = _row(generator, prompt=512, length=576, group=group)
        made += [first, *(_row(generator, 512, 576, group, first.token_ids[:512]) for _ in range(7))]
    return made


def _row(generator: Any, prompt: int, length: int, group: int, begins: np.ndarray | None = None) -> TokenRow:
    ids = generator.integers(5, 90, size=length)
    if begins is not None:
        ids[:prompt] = begins
    return TokenRow(ids, np.arange(length) >= prompt, group)


def forward_backward_s(policy: PolicyModel, rows: list[TokenRow], parts: list[list[int]], layout: str) -> float:
    """Return the wall-clock seconds of forward and backward over all microbatches."""
    start = time.perf_counter()
    for part in parts:
        logprobs, _ = policy(token_batch([rows[i] for i in part], layout), 1.0)
        logprobs.sum().backward()
    return time.perf_counter() - start


def main() -> None:
    """Measure all sides in turns and show their useful tokens per second and the ratios."""
    parser = argparse.ArgumentParser("python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/packing.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.sched_setaffinity(0, set(range(options.threads)))
    header = report.header("benchmarks.packing")
    hf = build_model(MODEL, build_tokenizer(MODEL.tokenizer), seed=0)
    padded = PolicyModel(build_model(MODEL, build_tokenizer(MODEL.tokenizer), seed=0), "padded").eval()
    packed = PolicyModel(hf, "shared_prompt").eval()
    ragged, grouped = ragged_rows(), grouped_rows()
    lengths = [len(row.token_ids) for row in ragged]
    in_order = MAX_TOKENS // LONGEST
    sides = {
        "packed": (packed, ragged, microbatches(ragged, MAX_TOKENS, "packed"), "packed"),
        "padded": (padded, ragged, [list(range(i, i + in_order)) for i in range(0, len(ragged), in_order)], "padded"),
        "padded, sorted": (padded, ragged, split_microbatches(lengths, MAX_TOKENS), "padded"),
        "shared": (packed, grouped, microbatches(grouped, MAX_TOKENS, "shared_prompt"), "shared_prompt"),
        "repeated": (packed, grouped, microbatches(grouped, MAX_TOKENS, "packed"), "packed"),
    }
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(options.repeats + 1):
        for name, side in sides.items():
            value = forward_backward_s(*side)
            if repeat:  # the first round warms up
                measured[name].append(value)
    rates = {
        name: sum(int(row.loss_mask.sum()) for row in sides[name][1]) / statistics.median(values)
        for name, values in measured.items()
    }
    ratios = {
        "packed / padded": rates["packed"] / rates["padded"],
        "packed / padded, sorted": rates["packed"] / rates["padded, sorted"],
        "shared / repeated": rates["shared"] / rates["repeated"],
    }
    shown = report.table(
        f"{options.threads} threads, mean / max {np.mean(lengths) / max(lengths):.2f}", ["", "value", "goal"]
    )
    for name, value in rates.items():
        shown.add_row(f"{name}: useful tokens/s", report.number(value, 0), "")
    for name, value in ratios.items():
        shown.add_row(name, report.number(value), report.number(GOALS.get(name), 1))
    report.show(shown)
    if options.write:
        content = {
            **header,
            "threads": options.threads,
            "seconds": measured,
            "useful_tokens_per_s": rates,
            "ratios": ratios,
        }
        print(f"written: {report.write('packing', content)}")


if __name__ == "__main__":
    main()
