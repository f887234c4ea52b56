"""Whether a learner has room on the GPU that it shares with its engine (`weights.backend=ipc`)."""

from __future__ import annotations

import torch
from torch import nn

from rlsys.errors import ConfigError
from rlsys.learner.setup import PolicySetup
from rlsys.models.policy import DTYPES

GIB = 2**30
MOMENTS_BYTES = 8  # AdamW's two per trained number, in float32
GRADIENT_BYTES = 4


def check_shared_gpu(setup: PolicySetup, module: nn.Module, free_bytes: int) -> None:
    """Raise ConfigError when what training will still allocate does not fit beside the engine.

    To be called once every worker has started: engine, reference, and the learner's weights with their float32 copy
    have their memory by then. Missing are what the first step makes and the copy of the weights that the engine reads;
    activations come on top.

    Args:
        setup: the rank's part of the configuration.
        module: the policy.
        free_bytes: what is free on the GPU.
    """
    learner = setup.learner
    # Under ZeRO-3 a parameter's own size is that of what is gathered; DeepSpeed keeps the real one.
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in module.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    needed = {
        "gradients": trained * GRADIENT_BYTES,
        "optimizer": 0 if learner.offload_optimizer else trained * MOMENTS_BYTES,
        "copy for the engine": 0 if learner.lora.syncs_adapter_only else total * DTYPES[setup.engine_dtype].itemsize,
    }
    if sum(needed.values()) > free_bytes:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in needed.items() if size)
        raise ConfigError(
            f"weights.backend=ipc shares one GPU, and beside the engine {free_bytes / GIB:.1f} GiB are free, but "
            f"training needs {sum(needed.values()) / GIB:.1f} GiB ({parts}) and memory for activations: lower "
            "rollout.gpu_memory_utilization, set learner.offload_optimizer=true, or use weights.backend=nccl with two "
            "GPUs"
        )


def free_memory() -> int:
    """Return the free bytes of this process's GPU."""
    return torch.cuda.mem_get_info()[0]
