"""Peak memory of ZeRO-3 ranks while they start, with the model divided as it is loaded and only afterwards.

python -m benchmarks.zero3_memory [--ranks 2]

Each rank is a process on this machine's CPUs. The model's file is in bfloat16, as most on the hub, and the ranks train
in float32, the default. Counted is a rank's private memory: pages of the file, which all ranks share and the kernel may
drop, are not.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from rlsys.config.build_schema import ModelBuild, TokenizerBuild
from rlsys.config.learner_schema import LearnerConfig
from rlsys.learner.engine import build_engine, divide_at_once
from rlsys.models.policy import load_policy
from rlsys.models.tiny import build_model, build_tokenizer, save_model

SHAPE = {"hidden_size": 1024, "num_layers": 6, "num_heads": 8, "num_kv_heads": 8, "intermediate_size": 4096}
MIB = 2**20


def private_bytes() -> int:
    """Return this process's anonymous and shared memory, without mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def start_rank(rank: int, world_size: int, port: int, folder: str, at_once: bool, found: Any) -> None:
    """Join, load the policy and build its engine; put peaks and what is left into `found`, in bytes above the start."""
    environment = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()}, MASTER_ADDR="127.0.0.1")
    import deepspeed

    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    config = LearnerConfig(num_workers=world_size, zero_stage=3)
    before, peak, is_done = private_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.wait(0.005):
            peak = max(peak, private_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    loading = divide_at_once(config, world_size) if at_once else nullcontext()
    policy = load_policy(folder, torch.float32, max_tokens=64, loading=loading)
    loaded = peak, private_bytes() - before
    build_engine(config, policy, world_size, num_updates=1)
    is_done.set()
    watcher.join()
    found.put((rank, *loaded, peak, private_bytes() - before))


def measure(folder: str, world_size: int, *, at_once: bool) -> None:
    """Start the ranks, and print each one's peak and what it holds in the end."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    found = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(start_rank, (world_size, port, folder, at_once, found), nprocs=world_size)
    rows = sorted(found.get() for _ in range(world_size))
    print("divided as it is loaded" if at_once else "divided afterwards")
    for rank, *values in rows:
        peak, left, engine_peak, engine_left = (round(value / MIB) for value in values)
        loaded, built = f"loading: peak {peak} MiB, then {left}", f"engine: peak {engine_peak}, then {engine_left}"
        print(f"  rank {rank}: {loaded}; {built}")


def main() -> None:
    """Measure both ways with one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    # The C library keeps freed blocks below 32 MiB in its heap, where this model's matrices would leave holes. Those of
    # a model that needs ZeRO-3 are larger, and go back to the system at once: so do these.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MIB)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build_tokenizer(TokenizerBuild())
        model = build_model(ModelBuild(**SHAPE), tokenizer, seed=0)  # type: ignore[arg-type]
        save_model(model.bfloat16(), tokenizer, Path(folder))
        print(f"a model of {4 * model.num_parameters() / MIB:.0f} MiB in float32, {options.ranks} ranks")
        del model
        for at_once in (False, True):
            measure(folder, options.ranks, at_once=at_once)


if __name__ == "__main__":
    main()
