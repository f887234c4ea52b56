"""Norms of CPU engines by vLLM's own C++ kernels, which it offers on GPUs only.

On CPUs vLLM composes a norm of PyTorch's operations: seven for one, with a temporary of each. Its wheel for CPUs has
the kernels all the same. They keep float32 until the end; in bfloat16 the composed norm, like transformers', rounds
before it multiplies with the weight, and engines must round as the learner does. So only float32 takes them.
"""

from __future__ import annotations

import torch
from vllm import ir

NAME = "rlsys_cpu"
VECTOR = 16  # numbers that the kernels handle at once; sizes must be multiples
# For `EngineArgs.ir_op_priority`.
PRIORITY = {"rms_norm": [NAME, "native"], "fused_add_rms_norm": [NAME, "native"]}


def register() -> None:
    """Register the kernels under `NAME`; to do before vLLM builds its worker, which looks names up."""
    ir.ops.rms_norm.register_impl(NAME, supports_args=suits)(rms_norm)
    ir.ops.fused_add_rms_norm.register_impl(NAME, supports_args=suits_sum, inplace=True)(fused_add_rms_norm)


def suits(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    """Return whether the kernel computes this norm as the composed one does."""
    if variance_size is not None or weight is None or weight.dtype != torch.float32:
        return False
    return x.dtype == torch.float32 and x.shape[-1] % VECTOR == 0 and _is_whole(x)


def suits_sum(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    """Return whether the kernel computes this sum and its norm as the composed ones do."""
    return x_residual.dtype == torch.float32 and _is_whole(x_residual) and suits(x, weight, epsilon, variance_size)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    """Compute the norm of [..., size]."""
    normed = torch.empty_like(x)
    torch.ops._C.rms_norm(normed, x, weight, epsilon)
    return normed


def fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the norm of a sum, and the sum, in the places of the two [..., size]."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual


def _is_whole(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.is_contiguous()
