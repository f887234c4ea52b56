"""Measure the peak memory of training ranks on the CPU: python -m tests.unit.learner.measured_memory CASES.json

A rank is a real `PolicyRank` with DeepSpeed, the first of its group. The others are not there: PyTorch's group for
tests moves no bytes, so memory is that of a rank among several, and numbers are not. Counted are the allocations of
PyTorch's CPU allocator, to the byte, as its profiler records them; the highest of their running sums is the peak.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from rlsys.config.compose import load_config
from rlsys.learner import engine
from rlsys.learner.policy_rank import PolicyRank
from rlsys.learner.rank_batch import RankBatch
from rlsys.learner.setup import PolicySetup
from rlsys.models.packing import TokenRow
from rlsys.types import Coefficients, ExperienceRow, Trajectory

NUM_RANKS = 2
NUM_MICROBATCHES = 3
MAX_TOKENS = 512
# DeepSpeed's buckets have 50 million numbers, a multiple of these tests' models: nothing else could be seen.
BUCKET = 200_000
_init_process_group, _deepspeed_config = dist.init_process_group, engine.deepspeed_config


@dataclass(frozen=True)
class Case:
    """A rank to measure or to predict: options of the learner, and a microbatch of one group."""

    options: tuple[str, ...]
    num_responses: int = 4
    prompt: int = 128  # tokens
    response: int = 96

    def setup(self, folder: str) -> PolicySetup:
        learner = [f"learner.{option}" for option in self.options]
        ranks = [f"cluster.num_gpus={NUM_RANKS}", f"learner.num_workers={NUM_RANKS}"]
        has_copies = {"packing=padded", "packing=packed"} & set(self.options)  # a prompt for each response
        size = self.prompt * (self.num_responses if has_copies else 1) + self.num_responses * self.response
        tokens = f"learner.microbatch_tokens={size}"
        config = load_config([*ranks, tokens, "weights.verify=false", "algorithm.kl.coef=0", *learner])
        return PolicySetup.from_config(config, folder, MAX_TOKENS)

    def trajectories(self) -> list[Trajectory]:
        length = self.prompt + self.response
        mask = np.arange(length) >= self.prompt
        logprobs = np.where(mask, -3.0, 0.0).astype(np.float32)
        return [
            Trajectory(np.full(length, 5 + group, np.int32), mask, logprobs, (), "stop", 0)
            for group in range(NUM_MICROBATCHES)
            for _ in range(self.num_responses)
        ]

    def rows(self) -> list[TokenRow]:
        """Return one microbatch."""
        return [TokenRow(t.token_ids, t.loss_mask) for t in self.trajectories()[: self.num_responses]]

    def batch(self) -> RankBatch:
        n, length = self.num_responses, self.prompt + self.response
        numbers = range(NUM_MICROBATCHES * n)
        rows = tuple(ExperienceRow(i, i // n, i % n, 0.5, 0.1, length, self.response) for i in numbers)
        places = [[(0, group * n + i) for i in range(n)] for group in range(NUM_MICROBATCHES)]
        return RankBatch((rows,), (len(rows) * self.response,), Coefficients(0.0, 0.0), 0, places, False, False)


class Rank(PolicyRank):
    def _build_model(self) -> nn.Module:
        model = super()._build_model()
        for parameter in model.parameters():
            # What is loaded may be a part of the file, mapped into memory; a GPU would get a copy.
            parameter.data = parameter.data.clone()
        return model


def small_buckets(config: Any, world_size: int) -> dict[str, Any]:
    found = _deepspeed_config(config, world_size)
    sizes = {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    return found | {"zero_optimization": found["zero_optimization"] | sizes}


def join(backend: str, *, store: Any, rank: int, world_size: int, **_: Any) -> None:
    if not dist.is_initialized():  # once per process: DeepSpeed keeps groups for good
        _init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)


def start(rank: PolicyRank) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    come = functools.partial(dist.TCPStore, "127.0.0.1", port, NUM_RANKS, False)
    threading.Thread(target=come, daemon=True).start()
    rank.start("127.0.0.1", port)


def measure(case: Case, folder: str) -> int:
    """Return the peak of two steps of a rank, in bytes; its start is not counted."""
    gc.collect()
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        rank = Rank(0, case.setup(folder))
        start(rank)
        started = time.time_ns()
        for _ in range(2):  # the optimizer's state comes with the first
            metrics, nonfinite = rank.update(case.batch(), case.trajectories())
            assert (metrics["policy/updates_applied"], nonfinite) == (1.0, [])
    rank._engine.destroy()
    found = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events = sorted((event.start_ns(), event.nbytes()) for event in found)
    allocated = itertools.accumulate(size for _, size in events)
    return max(now for now, (time_ns, _) in zip(allocated, events, strict=True) if time_ns >= started)


def main(path: Path) -> None:
    """Read a model's folder and cases from `path`, and write the measured peaks beside it."""
    torch.set_num_threads(1)
    dist.init_process_group = join
    engine.deepspeed_config = small_buckets
    given = json.loads(path.read_text())
    cases: Sequence[Case] = [Case(tuple(options), *shape) for options, *shape in given["cases"]]
    path.with_suffix(".peaks").write_text(json.dumps([measure(case, given["folder"]) for case in cases]))


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    main(Path(sys.argv[1]))
