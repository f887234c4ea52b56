"""The memory of a policy's forward and backward on an imaginary GPU, against the trace on the meta device.

Here the policy finds its kernels by the device, as on a GPU; the trace has to name them. Checkpointing and float32 are
left out: fakes that the first leaves behind go later than tensors do, and flex attention runs uncompiled here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlsys.errors import ConfigError
from rlsys.learner.memory import predict_peak
from rlsys.models.meta_memory import MetaMemory, use_kernels_of
from rlsys.models.packing import token_batch
from rlsys.models.policy import PolicyModel, empty_policy, load_policy
from tests.fake_cuda.gpu import FakeGpu
from tests.unit.learner.measured_memory import Case


class GpuMemory(MetaMemory):
    """Counts what is on the GPU."""

    def _count(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "cuda":
            super()._count(tensor)


def drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def peak(policy: PolicyModel, memory: MetaMemory, batch: Any) -> int:
    for parameter in policy.parameters():
        parameter.register_post_accumulate_grad_hook(drop)
    memory.exclude(policy)
    with memory:
        policy(batch, 0.7)[0].sum().backward()
    return memory.peak.total()


@pytest.mark.parametrize("layout", ["shared_prompt", "packed"])
def test_the_trace_is_what_a_gpu_allocates(tiny: Path, layout: str) -> None:
    traced = empty_policy(str(tiny), torch.bfloat16, packing=layout)
    use_kernels_of(traced.hf, "cuda")
    batch = token_batch(Case(()).rows(), layout)
    predicted = peak(traced, MetaMemory("cuda"), batch.to(torch.device("meta")))
    with FakeGpu():
        policy = load_policy(str(tiny), torch.bfloat16, max_tokens=64, packing=layout).to("cuda")
        found = peak(policy, GpuMemory("cuda"), batch.to(torch.device("cuda")))
    assert predicted == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("packing", ["shared_prompt", "padded"])
def test_a_prediction_for_a_gpu(tiny: Path, packing: str, stage: int) -> None:
    """It needs no GPU; here the lines that it takes for one are counted as entered."""
    setup = Case((f"zero_stage={stage}", "dtype=bfloat16", f"packing={packing}"), 2, 8, 8).setup(str(tiny))
    found = predict_peak(setup)
    assert found.total > found.peak > found.activations > 0
    setup.learner.lora.quantize_base = "nf4"
    with pytest.raises(ConfigError, match="4 bits"):
        predict_peak(setup)
