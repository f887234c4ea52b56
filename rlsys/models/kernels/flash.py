"""Packed attention by PyTorch's flash kernels for rows of different lengths, on GPUs in half precision.

The same two parts as on CPUs: every stretch causal by itself, then every token behind a shared prompt against the whole
of it, merged by their log-sum-exps. Each part is one call, however many stretches there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch

from rlsys.models.kernels.segments import Segments

MAX_HEAD_SIZE = 256
FIRST_CAPABILITY = (8, 0)
"""Ampere."""


def is_usable(query: torch.Tensor) -> bool:
    """Whether the kernels take this device, dtype and head size."""
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    size = query.shape[-1]
    return (
        size <= MAX_HEAD_SIZE and size % 8 == 0 and torch.cuda.get_device_capability(query.device) >= FIRST_CAPABILITY
    )


@dataclass(frozen=True)
class _Lengths:
    """Sequences one behind the other, as the kernels take them."""

    ends: torch.Tensor  # [n + 1] int32, from 0
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> _Lengths:
        return cls(torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device), max(lengths))


@dataclass(frozen=True)
class _Part:
    """Which sequences of keys each sequence of queries sees: with `causal` those before it, else all."""

    queries: _Lengths
    keys: _Lengths
    causal: bool

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, ...]:
        """Output [T, H, D], log-sum-exp [H, T] float32, and two tensors of random state that no dropout leaves
        unused."""
        found: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_forward(
            query, key, value, *self._lengths(), 0.0, self.causal, False, scale=scale
        )
        return found[:4]

    def backward(self, grad: torch.Tensor, saved: Sequence[torch.Tensor], scale: float) -> tuple[torch.Tensor, ...]:
        """Gradients of query, key and value, which `saved` begins with; then come output, log-sum-exp and state."""
        found: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_backward(
            grad, *saved[:5], *self._lengths(), 0.0, self.causal, *saved[5:], scale=scale
        )
        return found

    def _lengths(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        return self.queries.ends, self.keys.ends, self.queries.longest, self.keys.longest


@dataclass(frozen=True)
class _Layout:
    """One row's parts: every stretch by itself, and tokens behind a shared prompt against that."""

    own: _Part
    shared: _Part | None
    behind: torch.Tensor  # places of the row, [tokens] int64, as are the prompts'
    roots: torch.Tensor


@lru_cache(maxsize=2)  # every layer of a forward, and of a checkpointed backward, asks for the same
def _layout(segments: Segments, device: torch.device) -> _Layout:
    lengths = _Lengths.of([stretch.length for stretch in segments.stretches if stretch.length], device)
    own = _Part(lengths, lengths, causal=True)
    sides = [[shared.behind for shared in segments.shared], [shared.root for shared in segments.shared]]
    behind, roots = (_places(slices).to(device) for slices in sides)
    if not segments.shared:
        return _Layout(own, None, behind, roots)
    queries, keys = (_Lengths.of([s.stop - s.start for s in slices], device) for slices in sides)
    return _Layout(own, _Part(queries, keys, causal=False), behind, roots)


def _places(slices: Sequence[slice]) -> torch.Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *(torch.arange(s.start, s.stop) for s in slices)])


class VarlenFlash(torch.autograd.Function):
    """query [1, H, T, D], key and value [1, H_kv, T, D] to [1, T, H, D].

    With the final output and log-sum-exp the kernel's backward gives each part's exact share of the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
    ) -> torch.Tensor:
        layout = _layout(segments, query.device)
        query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # [T, H, D]
        out, lse, *state = layout.own.forward(query, key, value, scale)
        if layout.shared is not None:
            behind, roots = layout.behind, layout.roots
            part, part_lse, *_ = layout.shared.forward(query[behind], key[roots], value[roots], scale)
            own_lse = lse[:, behind]
            total = torch.logaddexp(own_lse, part_lse)
            own, other = (torch.exp(each - total).t()[..., None] for each in (own_lse, part_lse))
            out[behind] = (out[behind].float() * own + part.float() * other).to(out.dtype)
            lse[:, behind] = total
        ctx.save_for_backward(query, key, value, out, lse, *state)
        ctx.segments, ctx.scale = segments, scale
        return out[None]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: under checkpointing a second look is refused
        query, key, value, out, lse, *state = saved
        layout, grad = _layout(ctx.segments, query.device), grads[0][0].contiguous()
        found = layout.own.backward(grad, saved, ctx.scale)
        if layout.shared is not None:
            behind, roots = layout.behind, layout.roots
            taken = (query[behind], key[roots], value[roots], out[behind], lse[:, behind].contiguous(), *state)
            parts = layout.shared.backward(grad[behind], taken, ctx.scale)
            for whole, part, where in zip(found, parts, (behind, roots, roots), strict=True):
                whole[where] += part
        return *(whole.transpose(0, 1)[None] for whole in found), None, None
