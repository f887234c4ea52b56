"""An adapter of a 0.5B-parameter policy into a vLLM engine: from the learner's tensors until the engine serves it.

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
from typing import Any

import torch

from benchmarks import report
from benchmarks.broadcast_sides import MAX_TOKENS, SHAPE, broadcast_config
from benchmarks.side import Side, end_on_sigterm
from benchmarks.workload import side_env

WARMUP = 1


@contextlib.contextmanager
def engine_side(folder: Path, rank: int) -> Iterator[Callable[[], dict[str, float]]]:
    """One rollout worker through Ray, and a policy of the same shape with adapters in this process."""
    import ray

    from rlsys.build import connected
    from rlsys.config import LoraConfig
    from rlsys.models.adapters import adapter_parameters, peft_config
    from rlsys.models.policy import load_policy
    from rlsys.rollout.adapters import AdapterSlots
    from rlsys.rollout.worker import EngineModel, RolloutWorker
    from rlsys.runtime.calls import fetch
    from rlsys.runtime.placement import demands

    config, lora = broadcast_config(folder, 256), LoraConfig(rank=rank)
    wanted = demands(config)["rollout"]
    with connected(config, {"rollout": wanted}) as cluster:
        model = EngineModel(str(folder), MAX_TOKENS, slots=AdapterSlots(rank, 1))
        worker = cluster.start(RolloutWorker, wanted[0], 0, config.rollout, model, "gloo", 0, max_concurrency=8)
        fetch(worker.start.remote(), who="rollout/0", what="starting")
        policy = load_policy(str(folder), torch.bfloat16, packing="padded", lora=lora)
        state = {name: torch.randn_like(p) for name, p in adapter_parameters(policy.hf).items()}
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        versions = iter(range(10**6))

        def measure() -> dict[str, float]:
            started = time.perf_counter()
            sent = ray.put((state, peft_config(lora, str(folder)).to_dict()))
            times = fetch(worker.receive_adapter.remote(sent, next(versions)), who="rollout/0", what="measuring")
            return {**times, "seconds": time.perf_counter() - started, "num_bytes": num_bytes}

        yield measure
        fetch(worker.stop.remote(), who="rollout/0", what="stopping")


def main() -> None:
    """Measure, show, write."""
    end_on_sigterm()
    parser = argparse.ArgumentParser("python -m benchmarks.adapter", description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/adapter.json")
    options = parser.parse_args()
    header = report.header("benchmarks.adapter")
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as name:
        folder = Path(name)
        env = side_env(folder)
        with Side("benchmarks.broadcast_sides:builder", log=folder / "build.log", env=env) as build:
            model_bytes = build(folder=folder)
        side = Side(
            "benchmarks.adapter:engine_side", log=folder / "engine.log", env=env, folder=folder, rank=options.rank
        )
        with side as engine:
            runs: list[dict[str, Any]] = [engine() for _ in range(WARMUP + options.repeats)]
    seconds = statistics.median(run["seconds"] for run in runs[WARMUP:])
    num_bytes = int(runs[0]["num_bytes"])
    shown = report.table(f"rank {options.rank}", ["what", "number"])
    shown.add_row("adapter, MB", report.number(num_bytes / 1e6, 1))
    shown.add_row("model, MB", report.number(model_bytes / 1e6, 1))
    shown.add_row("until the engine serves it, s (median)", report.number(seconds, 3))
    report.show(shown)
    if options.write:
        workload = {"model": SHAPE, "dtype": "bfloat16", "rank": options.rank, "model_bytes": model_bytes}
        content = {**header, "workload": workload, "adapter_bytes": num_bytes, "median_s": seconds, "runs": runs}
        print(f"written: {report.write('adapter', content)}")


if __name__ == "__main__":
    main()
