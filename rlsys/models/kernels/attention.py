"""Attention over packed rows: each stretch causal, and behind a shared prompt the whole prompt too.

On CPUs stretches of similar length go through the flash kernel together, and every shared prompt once for all tokens
behind it; the two parts of a softmax are merged by their log-sum-exps. On GPUs the flash kernels for rows of different
lengths do the same in half precision, else flex attention takes the structure as a block mask. transformers calls
`packed_attention` by name in every layer.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from rlsys.errors import RlsysError
from rlsys.models.kernels.flash import VarlenFlash, is_usable
from rlsys.models.kernels.segments import Bucket, Segments

NAME = "rlsys_packed"
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias", "cache")
"""What some models ask of attention beyond scaled products."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface. query [1, H, T, D], key and value [1, H_kv, T, D] to [1, T, H, D]."""
    asked = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if asked or dropout or segments is None or query.shape[0] != 1:
        raise RlsysError(f"packed attention has no {', '.join(asked) or 'dropout, batch or unpacked input'}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if query.device.type == "cpu":
        # In float32 also for bfloat16 models: the kernel's backward is more than twice as fast, and more exact.
        rows = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (query, key, value))
        return _Packed.apply(*rows, segments, scale).to(query.dtype), None
    if is_usable(query):
        return VarlenFlash.apply(query, key, value, segments, scale), None
    return flex(query, key, value, segments, scale), None


def flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float) -> torch.Tensor:
    """The same by flex attention, compiled on GPUs."""
    from torch.nn.attention.flex_attention import flex_attention

    call: Any = _compiled_flex() if query.device.type == "cuda" else flex_attention
    mask = _block_mask(segments, query.device)
    return call(query, key, value, block_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2).contiguous()


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


@functools.lru_cache(maxsize=2)  # every layer of a forward, and of a checkpointed backward, asks for the same
def _block_mask(segments: Segments, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    own, root = segments.ids(device)

    def sees(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return ((own[q] == own[k]) & (q >= k)) | (root[q] == own[k])

    return create_block_mask(sees, None, None, segments.size, segments.size, device=device)


class _Packed(torch.autograd.Function):
    """With the final output and log-sum-exp the kernel's backward gives each part's exact share of the gradient."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
    ) -> torch.Tensor:
        rows = [_by_token(tensor) for tensor in (query, key, value)]
        out = rows[0].new_empty(segments.size + 1, *rows[0].shape[1:])  # one place more, where padding goes
        lse = rows[0].new_empty(segments.size + 1, rows[0].shape[1], dtype=torch.float32)
        for bucket in segments.buckets:
            part, part_lse = _flash(*(_take(row, bucket) for row in rows), 0.0, True, scale=scale)
            out.index_copy_(0, bucket.places, part.transpose(1, 2).flatten(0, 1))
            lse.index_copy_(0, bucket.places, part_lse.transpose(1, 2).flatten(0, 1))
        for shared in segments.shared:
            parts = (_heads(rows[0], shared.behind), _heads(rows[1], shared.root), _heads(rows[2], shared.root))
            part, part_lse = _flash(*parts, 0.0, False, scale=scale)
            _merge(out[shared.behind], lse[shared.behind], part[0].transpose(0, 1), part_lse[0].transpose(0, 1))
        ctx.save_for_backward(*rows, out, lse)
        ctx.segments, ctx.scale = segments, scale
        return out[:-1][None]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        segments, scale = ctx.segments, ctx.scale
        grad = grads[0][0]
        found = [row.new_empty(segments.size + 1, *row.shape[1:]) for row in (query, key, value)]
        for bucket in segments.buckets:
            grad_part = _take(grad, bucket, zero_padding=True)
            taken = [_take(row, bucket) for row in (query, key, value, out)]
            lse_part = _take(lse, bucket)
            for whole, part in zip(
                found, _flash_backward(grad_part, *taken, lse_part, 0.0, True, scale=scale), strict=True
            ):
                whole.index_copy_(0, bucket.places, part.transpose(1, 2).flatten(0, 1))
        for shared in segments.shared:
            behind, root = shared.behind, shared.root
            parts = _flash_backward(
                _heads(grad, behind),
                _heads(query, behind),
                _heads(key, root),
                _heads(value, root),
                _heads(out, behind),
                lse[behind].transpose(0, 1)[None],
                0.0,
                False,
                scale=scale,
            )
            for whole, part, where in zip(found, parts, (behind, root, root), strict=True):
                whole[where] += part[0].transpose(0, 1)
        return *(whole[:-1].transpose(0, 1)[None] for whole in found), None, None


def _by_token(tensor: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D] to [T, H, D]."""
    return tensor[0].transpose(0, 1).contiguous()


def _heads(rows: torch.Tensor, where: slice) -> torch.Tensor:
    """[T, H, D] to the kernel's [1, H, length, D], a view."""
    return rows[where].transpose(0, 1)[None]


def _take(rows: torch.Tensor, bucket: Bucket, *, zero_padding: bool = False) -> torch.Tensor:
    """[T, H, ...] to [num, H, longest, ...]; padding repeats some token, or is 0."""
    taken = rows.index_select(0, bucket.places.clamp(max=len(rows) - 1))
    if zero_padding and len(bucket.padding):
        taken.index_fill_(0, bucket.padding, 0.0)
    return taken.unflatten(0, (bucket.num, -1)).transpose(1, 2)


def _merge(out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Two parts of one softmax, in place: [n, H, D] by their log-sum-exps [n, H]."""
    total = torch.logaddexp(lse, part_lse)
    out.mul_(torch.exp(lse - total)[..., None]).add_(part * torch.exp(part_lse - total)[..., None])
    lse.copy_(total)


def register() -> None:
    """Make the name known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
