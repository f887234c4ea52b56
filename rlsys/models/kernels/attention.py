"""Attention over packed rows: causal within each segment; responses also see all of their shared prompt.

On CPUs segments of similar length go through the flash kernel together, and each shared prompt once for the tokens of
all its responses; the two parts of a softmax are merged by their log-sum-exps. On GPUs the flash kernels for sequences
of different lengths do the same in half precision; otherwise flex attention takes the structure as a block mask.
transformers calls `packed_attention` by name in every layer.
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
# What some models ask of attention beyond scaled products, by the names of transformers' arguments.
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias", "cache")

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention behind transformers' interface.

    Args:
        module: the attention layer; not used.
        query: [1, H, T, D].
        key: [1, H_kv, T, D].
        value: [1, H_kv, T, D].
        attention_mask: not used; `segments` decide which tokens see which.
        scaling: factor of the products; None is D ** -0.5.
        dropout: must be 0.
        segments: the structure of the row.
        **kwargs: other arguments of transformers; those in UNSUPPORTED must be None.

    Returns: [1, T, H, D], and None in place of attention weights.

    Raises:
        RlsysError: the model asks for something that this attention cannot do.
    """
    asked = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if asked or dropout or segments is None or query.shape[0] != 1:
        what = ", ".join(asked) or "dropout, batches or unpacked input"
        raise RlsysError(f"packed attention does not support {what}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if query.device.type == "cpu":
        return on_cpu(query, key, value, segments, scale), None
    if is_usable(query):
        return VarlenFlash.apply(query, key, value, segments, scale), None
    return flex(query, key, value, segments, scale), None


def on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
) -> torch.Tensor:
    """Compute packed attention by the CPU's flash kernel, [1, H, T, D] to [1, T, H, D]."""
    # In float32 also for bfloat16 models: the kernel's backward is more than twice as fast, and more exact.
    tensors = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (query, key, value))
    found: torch.Tensor = _Packed.apply(*tensors, segments, scale).to(query.dtype)
    return found


def flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float) -> torch.Tensor:
    """Compute the same by flex attention, compiled on GPUs."""
    from torch.nn.attention.flex_attention import flex_attention

    call: Any = _compiled_flex() if query.device.type == "cuda" else flex_attention
    mask = _block_mask(segments, query.device)
    return call(query, key, value, block_mask=mask, scale=scale, enable_gqa=True).transpose(1, 2).contiguous()


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # The length of a row differs from microbatch to microbatch; with static shapes each would be compiled again.
    return torch.compile(flex_attention, dynamic=True)


@functools.lru_cache(maxsize=2)  # every layer of a forward, and of a checkpointed backward, needs the same mask
def _block_mask(segments: Segments, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    own, prompt = segments.ids(device)

    def sees(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        # A segment without a prompt has -1 in `prompt`, which is no segment's number.
        return ((own[q] == own[k]) & (q >= k)) | (prompt[q] == own[k])

    return create_block_mask(sees, None, None, segments.size, segments.size, device=device)


class _Packed(torch.autograd.Function):
    """Packed attention on CPUs, [1, H, T, D] to [1, T, H, D].

    A response token's softmax runs over two disjoint sets of keys: those before it in its segment and those of the
    prompt. Each set goes through the kernel alone; `_merge` makes one softmax of the two results. The backward needs
    no merging: a kernel's backward recomputes the probabilities as exp(score - lse), so with the log-sum-exp and the
    output of the whole softmax it gives exactly that set's part of the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
    ) -> torch.Tensor:
        rows = [_by_token(tensor) for tensor in (query, key, value)]  # [T, H, D] each
        # One index more than there are tokens: results of padding are written there and dropped.
        out = rows[0].new_empty(segments.size + 1, *rows[0].shape[1:])
        lse = rows[0].new_empty(segments.size + 1, rows[0].shape[1], dtype=torch.float32)
        # Buckets come first: together they cover every token once, and so fill the uninitialised memory. Shared prompts
        # are merged into it.
        for bucket in segments.buckets:
            part, part_lse = _flash(*(_take(row, bucket) for row in rows), 0.0, True, scale=scale)
            out.index_copy_(0, bucket.indices, part.transpose(1, 2).flatten(0, 1))
            lse.index_copy_(0, bucket.indices, part_lse.transpose(1, 2).flatten(0, 1))
        for shared in segments.shared:
            # Not causal: every token of every response sees the whole prompt.
            parts = (_heads(rows[0], shared.responses), _heads(rows[1], shared.prompt), _heads(rows[2], shared.prompt))
            part, part_lse = _flash(*parts, 0.0, False, scale=scale)
            _merge(out[shared.responses], lse[shared.responses], part[0].transpose(0, 1), part_lse[0].transpose(0, 1))
        ctx.save_for_backward(*rows, out, lse)
        ctx.segments, ctx.scale = segments, scale
        return out[:-1][None]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        segments, scale = ctx.segments, ctx.scale
        grad = grads[0][0]  # [T, H, D]
        # As in the forward: buckets fill uninitialised memory, and shared prompts add to it.
        found = [row.new_empty(segments.size + 1, *row.shape[1:]) for row in (query, key, value)]
        for bucket in segments.buckets:
            # Padding repeats some token; a gradient of 0 keeps it out of the keys' and values' gradients.
            grad_part = _take(grad, bucket, zero_padding=True)
            taken = [_take(row, bucket) for row in (query, key, value, out)]
            lse_part = _take(lse, bucket)
            for whole, part in zip(
                found, _flash_backward(grad_part, *taken, lse_part, 0.0, True, scale=scale), strict=True
            ):
                whole.index_copy_(0, bucket.indices, part.transpose(1, 2).flatten(0, 1))
        for shared in segments.shared:
            responses, prompt = shared.responses, shared.prompt
            parts = _flash_backward(
                _heads(grad, responses),
                _heads(query, responses),
                _heads(key, prompt),
                _heads(value, prompt),
                _heads(out, responses),
                lse[responses].transpose(0, 1)[None],
                0.0,
                False,
                scale=scale,
            )
            for whole, part, where in zip(found, parts, (responses, prompt, prompt), strict=True):
                whole[where] += part[0].transpose(0, 1)
        return *(whole[:-1].transpose(0, 1)[None] for whole in found), None, None


def _by_token(tensor: torch.Tensor) -> torch.Tensor:
    """Bring [1, H, T, D] to [T, H, D]."""
    return tensor[0].transpose(0, 1).contiguous()


def _heads(rows: torch.Tensor, where: slice) -> torch.Tensor:
    """View a slice of [T, H, D] as the kernel's [1, H, length, D]."""
    return rows[where].transpose(0, 1)[None]


def _take(rows: torch.Tensor, bucket: Bucket, *, zero_padding: bool = False) -> torch.Tensor:
    """Gather a bucket's tokens: [T, H, ...] to [num, H, longest, ...]; padding repeats some token, or is 0."""
    # Padding has the index T. `out` and `lse` have a row for it. The others have T rows, and padding takes the last.
    taken = rows.index_select(0, bucket.indices.clamp(max=len(rows) - 1))
    if zero_padding and len(bucket.padding):
        taken.index_fill_(0, bucket.padding, 0.0)
    return taken.unflatten(0, (bucket.num, -1)).transpose(1, 2)


def _merge(out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Merge two parts of one softmax in place: outputs [n, H, D], weighted by their log-sum-exps [n, H].

    With Z the sum of exponentials, the whole is (Z1 * out1 + Z2 * out2) / (Z1 + Z2).
    """
    total = torch.logaddexp(lse, part_lse)
    out.mul_(torch.exp(lse - total)[..., None]).add_(part * torch.exp(part_lse - total)[..., None])
    lse.copy_(total)


def register() -> None:
    """Register `packed_attention` with transformers under NAME."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
