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

from rlsys.models.segments import Segments

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
class _Layout:
    """One row's two parts. `behind` and `roots` are places of the row, [tokens] int64."""

    own: _Lengths
    behind: torch.Tensor
    behind_lengths: _Lengths | None  # None: nothing is shared
    roots: torch.Tensor
    root_lengths: _Lengths | None


@lru_cache(maxsize=2)  # every layer of a forward, and of a checkpointed backward, asks for the same
def _layout(segments: Segments, device: torch.device) -> _Layout:
    own = _Lengths.of([stretch.length for stretch in segments.stretches if stretch.length], device)
    none = torch.empty(0, dtype=torch.int64, device=device)
    if not segments.shared:
        return _Layout(own, none, None, none, None)
    sides = [[shared.behind for shared in segments.shared], [shared.root for shared in segments.shared]]
    places = [torch.cat([torch.arange(s.start, s.stop) for s in slices]).to(device) for slices in sides]
    lengths = [_Lengths.of([s.stop - s.start for s in slices], device) for slices in sides]
    return _Layout(own, places[0], lengths[0], places[1], lengths[1])


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
        out, lse, *state = _forward(query, key, value, layout.own, layout.own, True, scale)
        if layout.behind_lengths is not None and layout.root_lengths is not None:
            behind, roots = layout.behind, layout.roots
            part, part_lse, *_ = _forward(
                query[behind], key[roots], value[roots], layout.behind_lengths, layout.root_lengths, False, scale
            )
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
        query, key, value, out, lse, *state = ctx.saved_tensors
        layout, grad = _layout(ctx.segments, query.device), grads[0][0].contiguous()
        found = _backward(grad, query, key, value, out, lse, layout.own, layout.own, True, state, ctx.scale)
        if layout.behind_lengths is not None and layout.root_lengths is not None:
            behind, roots = layout.behind, layout.roots
            parts = _backward(
                grad[behind],
                query[behind],
                key[roots],
                value[roots],
                out[behind],
                lse[:, behind].contiguous(),
                layout.behind_lengths,
                layout.root_lengths,
                False,
                state,
                ctx.scale,
            )
            for whole, part, where in zip(found, parts, (behind, roots, roots), strict=True):
                whole[where] += part
        return *(whole.transpose(0, 1)[None] for whole in found), None, None


def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    of_query: _Lengths,
    of_key: _Lengths,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, ...]:
    """Output [T, H, D], log-sum-exp [H, T] float32, and two tensors of random state that no dropout leaves unused."""
    lengths = (of_query.ends, of_key.ends, of_query.longest, of_key.longest)
    out: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_forward(
        query, key, value, *lengths, 0.0, causal, False, scale=scale
    )
    return out[:4]


def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    of_query: _Lengths,
    of_key: _Lengths,
    causal: bool,
    state: Sequence[torch.Tensor],
    scale: float,
) -> tuple[torch.Tensor, ...]:
    lengths = (of_query.ends, of_key.ends, of_query.longest, of_key.longest)
    found: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_backward(
        grad, query, key, value, out, lse, *lengths, 0.0, causal, *state, scale=scale
    )
    return found
