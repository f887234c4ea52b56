"""The broadcast over NCCL and over CUDA IPC, in bfloat16. Written with the same care as the rest; see the README for
whether it has run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.integration.runs import read_metrics, small_run

NUM_GPUS = torch.cuda.device_count()
BF16 = ["learner.dtype=bfloat16", "cluster.num_gpus={gpus}", "weights.backend={backend}"]


@pytest.mark.gpu
@pytest.mark.skipif(NUM_GPUS < 2, reason=f"nccl needs two GPUs, learner and engine; {NUM_GPUS} here")
def test_nccl_broadcast_agrees(tmp_path: Path) -> None:
    _agrees(tmp_path, gpus=2, backend="nccl")


@pytest.mark.gpu
@pytest.mark.skipif(NUM_GPUS < 1, reason="ipc needs a GPU; none here")
def test_ipc_on_one_gpu_agrees(tmp_path: Path) -> None:
    _agrees(tmp_path, gpus=1, backend="ipc")


@pytest.mark.gpu
@pytest.mark.skipif(NUM_GPUS < 1, reason="needs a GPU; none here")
def test_offloading_and_checkpointing_on_one_gpu(tmp_path: Path) -> None:
    more = ["learner.offload_optimizer=true", "learner.gradient_checkpointing=true"]
    _agrees(tmp_path, gpus=1, backend="ipc", more=more)


def _agrees(tmp_path: Path, *, gpus: int, backend: str, more: Sequence[str] = ()) -> None:
    overrides = [*(part.format(gpus=gpus, backend=backend) for part in BF16), *more]
    with small_run(tmp_path, [*overrides, "algorithm.kl.coef=0", "rollout.gpu_memory_utilization=0.3"]) as opened:
        opened.train()
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["sync/logprob_abs_diff/mean"] < 0.05 for row in rows[1:])


@pytest.mark.gpu
@pytest.mark.skipif(NUM_GPUS < 1, reason="needs a GPU; none here")
@pytest.mark.parametrize("quantize", ["null", "nf4"])
def test_adapters_on_one_gpu(tmp_path: Path, quantize: str) -> None:
    """The adapter travels through the object store, whatever the backend; with nf4 both sides hold 4-bit weights."""
    if quantize != "null":
        pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    more = ["learner.lora.rank=8", f"learner.lora.quantize_base={quantize}"]
    _agrees(tmp_path, gpus=1, backend="ipc", more=more)
