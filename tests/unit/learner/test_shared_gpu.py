"""What a learner still allocates must fit beside the engine on the GPU that they share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlsys.config.compose import load_config
from rlsys.errors import ConfigError
from rlsys.learner.setup import PolicySetup
from rlsys.learner.shared_gpu import GIB, check_shared_gpu

MIB_PER_BYTE = 64  # the module has 64 Mi numbers: a byte for each is 64 MiB


@pytest.mark.parametrize(
    ("overrides", "bytes_per_number"),
    [
        ([], 4 + 8 + 2),  # bfloat16 on GPUs
        (["algorithm.kl.coef=0.1"], 4 + 8 + 2),  # the reference has its memory by then
        (["learner.offload_optimizer=true"], 4 + 2),
        (["learner.dtype=float32"], 4 + 8 + 4),
        (["learner.lora.rank=8"], 4 + 8),
        (["learner.zero_stage=3"], 4 + 8 + 2),
    ],
)
def test_what_training_still_needs_is_compared_with_what_is_free(overrides: list[str], bytes_per_number: int) -> None:
    config = load_config(["weights.backend=ipc", "cluster.num_gpus=1", "algorithm.kl.coef=0", *overrides])
    setup = PolicySetup.from_config(config, "model", 100)
    module = nn.Linear(8192, 8192, bias=False, device="meta")
    needed = MIB_PER_BYTE * 2**20 * bytes_per_number
    if config.learner.zero_stage == 3:  # DeepSpeed leaves an empty parameter that knows its real size
        module.weight.ds_numel = module.weight.numel()  # type: ignore[attr-defined]
        module.weight.data = torch.empty(0, device="meta")
    check_shared_gpu(setup, module, needed)
    words = rf"GiB are free, but training needs {needed / GIB:.1f} GiB .*gpu_memory_utilization"
    with pytest.raises(ConfigError, match=words):
        check_shared_gpu(setup, module, needed - 1)
