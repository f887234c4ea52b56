"""Float32 linear layers through oneDNN on CPUs with AVX-512.

PyTorch multiplies float32 matrices with MKL, which uses AVX2 kernels on many processors that are not Intel's. oneDNN
has AVX-512 kernels for all of them: on an AMD EPYC up to twice the rate, forward and backward, at the same precision.
Without AVX-512 it is MKL that is faster, by up to a third (benchmarks/results/notes.md), so there layers stay as they
are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
IS_FASTER = HAS_ONEDNN and torch.cpu._is_avx512_supported()


class OneDnnLinear(nn.Linear):
    """`nn.Linear` whose float32 products on a CPU go through oneDNN; anything else takes PyTorch's own path."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., in_features] to [..., out_features], as `nn.Linear` does."""
        if not _suits_onednn(x):
            return super().forward(x)
        return _Linear.apply(x, self.weight, self.bias)


def multiply(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `left @ right.T + bias` on the faster path, without gradient. [n, k], [m, k], [m] to [n, m]."""
    return _multiply(left, right, bias) if _suits_onednn(left) else nn.functional.linear(left, right, bias)


def _suits_onednn(x: torch.Tensor) -> bool:
    return IS_FASTER and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0


def use_onednn(model: nn.Module) -> None:
    """Switch every plain linear layer of `model` in place, if it gets faster; names and results stay the same."""
    if not IS_FASTER:
        return
    for module in model.modules():
        if type(module) is nn.Linear:  # subclasses may compute something else
            module.__class__ = OneDnnLinear


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(
        ctx: Any, *grads: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        # Contiguous: the gradient of a sum is one number with strides of 0, which oneDNN would misread.
        rows, grad = x.reshape(-1, x.shape[-1]), grads[0].reshape(-1, weight.shape[0]).contiguous()
        needs_input, needs_weight, _ = ctx.needs_input_grad
        return (
            _multiply(grad, weight.t(), None).view(x.shape) if needs_input else None,
            _weight_grad(grad, rows) if needs_weight else None,
            grad.sum(0) if ctx.has_bias else None,
        )


def _weight_grad(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Compute `grad.T @ x`, [out, in]. oneDNN is up to a third faster with the shorter side first."""
    if grad.shape[1] <= x.shape[1]:
        return _multiply(grad.t(), x.t(), None)
    return _multiply(x.t(), grad.t(), None).t()


def _multiply(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute `left @ right.T + bias` with oneDNN."""
    # "none" is the activation that is fused behind the product.
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
