"""Time to send a LoRA adapter to a vLLM engine, compared with a broadcast of the whole policy to another engine.

The policy has 0.5B parameters. Both are timed from the learner's tensors until the engine serves them, in turns.

python -m benchmarks.adapter [--rank 16] [--repeats 7] [--write]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.broadcast_sides import MAX_TOKENS, SHAPE, broadcast_config
from benchmarks.loop import wait
from benchmarks.side import Side, end_on_sigterm
from benchmarks.workload import side_env

WARMUP = 1
BUCKET_MIB = 256


@contextlib.contextmanager
def engine_side(folder: Path, rank: int) -> Iterator[Callable[[], dict[str, float]]]:
    """Start one rollout worker through Ray, and a policy of the same shape with a LoRA adapter in this process."""
    import ray

    from rlsys.build.placement import worker_demands
    from rlsys.build.run import connect
    from rlsys.config.learner_schema import LoraConfig
    from rlsys.models.lora import layers_of, peft_config
    from rlsys.models.parameters import adapter_parameters
    from rlsys.models.policy import load_policy
    from rlsys.rollout.served_adapters import AdapterSlots
    from rlsys.rollout.setup import EngineSetup
    from rlsys.rollout.worker import RolloutWorker
    from rlsys.runtime.calls import fetch
    from rlsys.weights.packed_adapter import pack_adapter

    config, lora = broadcast_config(folder, BUCKET_MIB), LoraConfig(rank=rank)
    wanted = worker_demands(config)["rollout"]
    with connect(config, {"rollout": wanted}) as cluster:
        policy = load_policy(str(folder), torch.bfloat16, max_tokens=512, packing="padded", lora=lora)
        state = {name: torch.randn_like(p) for name, p in adapter_parameters(policy.hf).items()}
        slots = AdapterSlots(rank, 1, layers_of(state))
        setup = EngineSetup(config.rollout, str(folder), MAX_TOKENS, "gloo", seed=0, stop_token_ids=(), slots=slots)
        worker = cluster.start(RolloutWorker, wanted[0], 0, setup, max_concurrency=8)
        wait(fetch(worker.start.remote(), who="rollout/0", what="starting"))
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        versions = iter(range(10**6))

        def measure() -> dict[str, float]:
            started = time.perf_counter()
            sent = ray.put(pack_adapter(state, peft_config(lora, str(folder)).to_dict()))
            times = wait(fetch(worker.receive_adapter.remote(sent, next(versions)), who="rollout/0", what="measuring"))
            return {**times, "seconds": time.perf_counter() - started, "num_bytes": num_bytes}

        yield measure
        wait(fetch(worker.stop.remote(), who="rollout/0", what="stopping"))


def main() -> None:
    """Measure adapter and broadcast, show the medians, and write the results if asked to."""
    end_on_sigterm()
    options = _options()
    header = report.header("benchmarks.adapter")
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as name:
        folder = Path(name)
        env = side_env(folder)
        with Side("benchmarks.broadcast_sides:builder", log=folder / "build.log", env=env) as build:
            model_bytes = build(folder=folder)
        runs = _measure(folder, options)
    medians = {what: statistics.median(run["seconds"] for run in runs[what][WARMUP:]) for what in runs}
    ratio = medians["adapter"] / medians["weights"]
    num_bytes = int(runs["adapter"][0]["num_bytes"])
    _show(options.rank, {"adapter": num_bytes, "weights": model_bytes}, medians)
    print(f"adapter over whole policy: {ratio:.2f} of the time, {num_bytes / model_bytes:.3f} of the bytes")
    if options.write:
        workload = {"model": SHAPE, "dtype": "bfloat16", "rank": options.rank, "repeats": options.repeats}
        sizes = {"adapter_bytes": num_bytes, "model_bytes": model_bytes}
        found = {"median_s": medians, "adapter_over_weights": ratio, "runs": runs}
        print(f"written: {report.write('adapter', {**header, 'workload': workload, **sizes, **found})}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.adapter", description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7, help="measured repeats")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/adapter.json")
    return parser.parse_args()


def _measure(folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Measure both in turns, with both engines running throughout; return what each repeat measured, by kind."""
    env = side_env(folder)
    weights = Side(
        "benchmarks.broadcast_sides:engine_side",
        log=folder / "weights.log",
        env=env,
        folder=folder,
        bucket_mib=BUCKET_MIB,
    )
    adapter = Side(
        "benchmarks.adapter:engine_side", log=folder / "adapter.log", env=env, folder=folder, rank=options.rank
    )
    runs: dict[str, list[dict[str, float]]] = {"weights": [], "adapter": []}
    with weights as whole, adapter as low_rank:
        for _ in range(WARMUP + options.repeats):
            runs["weights"].append(whole(what="update"))
            runs["adapter"].append(low_rank())
    return runs


def _show(rank: int, num_bytes: dict[str, int], medians: dict[str, float]) -> None:
    shown = report.table(f"rank {rank}", ["what", "MB", "until the engine serves it, s (median)"])
    for what, label in {"weights": "whole policy, by gloo", "adapter": "adapter, through Ray"}.items():
        shown.add_row(label, report.number(num_bytes[what] / 1e6, 1), report.number(medians[what], 3))
    report.show(shown)


if __name__ == "__main__":
    main()
