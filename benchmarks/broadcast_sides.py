"""The two sides of the broadcast benchmark, each in its own process: a rollout worker with a sender, and bare gloo."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loop import wait
from rlsys.config.schema import Config
from rlsys.rollout.setup import EngineSetup
from rlsys.rollout.worker import RolloutWorker
from rlsys.runtime.calls import fetch
from rlsys.types import GroupRequest, Sampling
from rlsys.weights.manifest import buckets, from_update_info, total_bytes, views
from rlsys.weights.receipt import Received
from rlsys.weights.sender import WeightSender

# The shape of Qwen2.5-0.5B.
SHAPE = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
DEADLINE_S = 300.0
HELD_BYTES = 64 * 2**20  # size of the buckets that `reload_from_memory` loads
NUM_REQUESTS, RESPONSE_TOKENS, MAX_TOKENS = 2, 1500, 1600


def broadcast_config(folder: Path, bucket_mib: int) -> Config:
    """Return the config of a run with this model; only what its rollout worker needs is set."""
    from rlsys.config.compose import load_config

    rollout = ["rollout.dtype=bfloat16", "rollout.max_num_seqs=8", f"rollout.max_response_tokens={RESPONSE_TOKENS}"]
    return load_config([f"model.path={folder}", f"weights.bucket_mib={bucket_mib}", *rollout])


@contextlib.contextmanager
def builder() -> Iterator[Callable[..., int]]:
    """Provide the function that writes the model, in a process that frees the model's memory when it ends."""
    yield _build


def _build(folder: Path) -> int:
    """Write a model with random weights in bfloat16 and return the weights' size in bytes."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    model.save_pretrained(folder)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@contextlib.contextmanager
def engine_side(folder: Path, bucket_mib: int) -> Iterator[Callable[..., dict[str, float]]]:
    """Start one rollout worker through Ray; this process sends it the weights, as a learner's rank 0 does."""
    from transformers import Qwen2ForCausalLM

    from rlsys.build.placement import worker_demands
    from rlsys.build.run import connect

    config = broadcast_config(folder, bucket_mib)
    wanted = worker_demands(config)["rollout"]
    with connect(config, {"rollout": wanted}) as cluster:
        setup = EngineSetup(config.rollout, str(folder), MAX_TOKENS, "gloo", seed=0, stop_token_ids=())
        worker = cluster.start(MeasuredWorker, wanted[0], 0, setup, max_concurrency=8)
        wait(fetch(worker.start.remote(), who="rollout/0", what="starting"))
        model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        sender = WeightSender(model, torch.bfloat16, rank=0, bucket_bytes=bucket_mib * 2**20)
        yield _Engine(worker, sender, bucket_mib * 2**20)
        wait(fetch(worker.stop.remote(), who="rollout/0", what="stopping"))


class _Engine:
    """A rollout worker and its sender, measured by name.

    update      one broadcast while the engine generates nothing
    inflight    one broadcast while the engine generates
    reload      the engine's own reload of the same bytes
    """

    def __init__(self, worker: Any, sender: WeightSender, bucket_bytes: int) -> None:
        self._worker = worker
        self._sender = sender
        self._version = 0
        self._group = 0
        port = free_port()
        info: dict[str, Any] = {"master_address": "127.0.0.1", "master_port": port, "rank_offset": 1, "world_size": 2}
        info |= {"bucket_bytes": bucket_bytes, "deadline_s": DEADLINE_S, "is_checked": True}
        joining = worker.join_weights.remote(info)
        sender.open("gloo", "127.0.0.1", port, 2, DEADLINE_S)
        self._get(joining)

    def __call__(self, what: str) -> dict[str, float]:
        measures = {"update": self._update, "inflight": self._inflight, "reload": self._reload}
        return measures[what]()

    def _update(self) -> dict[str, float]:
        """Broadcast once and return the seconds until the engine serves the new weights."""
        self._version += 1
        started = time.perf_counter()
        receiving = self._worker.receive_weights.remote(self._sender.update_info(), self._version)
        self._sender.send()
        received: Received = self._get(receiving)
        return {**received.times, "seconds": time.perf_counter() - started}

    def _inflight(self) -> dict[str, float]:
        """Measure one broadcast while requests are running, and cancel the requests afterwards."""
        self._group += 1
        prompt = np.arange(self._group, self._group + 32, dtype=np.int32)
        sampling = Sampling(1.0, RESPONSE_TOKENS, NUM_REQUESTS, ignore_eos=True)
        request = GroupRequest(self._group, prompt, (sampling,), stream=self._group)
        self._get(self._worker.submit.remote([request], self._version))
        time.sleep(1.0)
        times = self._update()
        finished = self._get(self._worker.finished.options(num_returns=2).remote(0.0, 0.0)[0])
        if finished:
            raise RuntimeError(
                f"{len(finished)} requests finished before the update did; raise RESPONSE_TOKENS ({RESPONSE_TOKENS})"
            )
        self._get(self._worker.cancel.remote([self._group]))
        return times

    def _reload(self) -> dict[str, float]:
        """Measure the reload of the same bytes from memory, layer by layer, inside vLLM's worker."""
        return {"seconds": self._get(self._worker.reload.remote(self._sender.update_info()))}

    @staticmethod
    def _get(ref: Any) -> Any:
        return wait(fetch(ref, who="rollout/0", what="measuring"))


class MeasuredWorker(RolloutWorker):
    """The unchanged rollout worker with one more method, which runs a reload inside vLLM's worker."""

    async def reload(self, update_info: dict[str, Any]) -> float:
        seconds: list[float] = await self._engine.collective_rpc(reload_from_memory, update_info)
        return seconds[0]


def reload_from_memory(worker: Any, update_info: dict[str, Any]) -> float:
    """Return the seconds from loading the first parameter to the last; runs inside vLLM's worker."""
    if not hasattr(worker, "held"):  # kept between calls, as the receiver keeps its buffers: fresh memory is slower
        cut = buckets(from_update_info(update_info), HELD_BYTES)
        worker.held = [(bucket, torch.ones(total_bytes(bucket), dtype=torch.uint8)) for bucket in cut]
    started = time.perf_counter()
    worker.start_weight_update()
    for bucket, buffer in worker.held:
        worker.weight_transfer_engine.model.load_weights(views(buffer, bucket))
    worker.finish_weight_update()
    return time.perf_counter() - started


@contextlib.contextmanager
def gloo_side(port: int, rank: int) -> Iterator[Callable[..., dict[str, float]]]:
    """Join a gloo group as one of its two ends and provide the broadcast of buffers allocated beforehand."""
    import torch.distributed as dist

    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def measure(num_bytes: int, bucket_bytes: int) -> dict[str, float]:
        sizes = [min(bucket_bytes, num_bytes - start) for start in range(0, num_bytes, bucket_bytes)]
        buffers = [torch.ones(size, dtype=torch.uint8) for size in sizes]
        dist.broadcast(torch.zeros(1), 0)  # wait until both ends are ready
        started = time.perf_counter()
        for buffer in buffers:
            dist.broadcast(buffer, 0)
        return {"seconds": time.perf_counter() - started}

    yield measure
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
