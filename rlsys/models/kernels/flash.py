"""Packed attention by PyTorch's flash kernels for sequences of different lengths, on GPUs in half precision.

The same two parts as on CPUs: every segment causal by itself, then every response token against the whole of its shared
prompt, merged by their log-sum-exps. Each part is one call, however many segments there are.
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
FIRST_CAPABILITY = (8, 0)  # Ampere


def is_usable(query: torch.Tensor) -> bool:
    """Return whether the kernels support this device, dtype and head size."""
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    size = query.shape[-1]
    return (
        size <= MAX_HEAD_SIZE and size % 8 == 0 and torch.cuda.get_device_capability(query.device) >= FIRST_CAPABILITY
    )


@dataclass(frozen=True)
class _Lengths:
    """Lengths of sequences that follow each other, in the form that the kernels take."""

    ends: torch.Tensor  # [n + 1] int32, cumulative, from 0
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> _Lengths:
        return cls(torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device), max(lengths))


@dataclass(frozen=True)
class _Part:
    """One kernel call: sequence i of the queries sees sequence i of the keys, causally or all of it."""

    queries: _Lengths
    keys: _Lengths
    causal: bool

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, ...]:
        """Return output [T, H, D], log-sum-exp [H, T] float32, random state, and a tensor that PyTorch names `unused`.

        The last two have no meaning without dropout, but the backward takes them.
        """
        found: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_forward(
            query, key, value, *self._lengths(), 0.0, self.causal, False, scale=scale
        )
        return found[:4]

    def backward(self, grad: torch.Tensor, saved: Sequence[torch.Tensor], scale: float) -> tuple[torch.Tensor, ...]:
        """Return the gradients of query, key and value.

        Args:
            grad: gradient of the output, [T, H, D].
            saved: query, key, value, and what `forward` returned.
            scale: factor of the products.
        """
        found: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_backward(
            grad, *saved[:5], *self._lengths(), 0.0, self.causal, *saved[5:], scale=scale
        )
        return found

    def _lengths(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        return self.queries.ends, self.keys.ends, self.queries.longest, self.keys.longest


@dataclass(frozen=True)
class _Calls:
    """The kernel calls for one row: every segment by itself, and response tokens against their shared prompts."""

    own: _Part
    shared: _Part | None
    responses: torch.Tensor  # [tokens] int64, indices in the row of all tokens that follow a shared prompt
    prompts: torch.Tensor  # [tokens] int64, indices in the row of all shared prompts' tokens


@lru_cache(maxsize=2)  # every layer of a forward, and of a checkpointed backward, needs the same
def _calls(segments: Segments, device: torch.device) -> _Calls:
    lengths = _Lengths.of([segment.length for segment in segments.members if segment.length], device)
    own = _Part(lengths, lengths, causal=True)
    sides = [[shared.responses for shared in segments.shared], [shared.prompt for shared in segments.shared]]
    responses, prompts = (_indices(slices).to(device) for slices in sides)
    if not segments.shared:
        return _Calls(own, None, responses, prompts)
    queries, keys = (_Lengths.of([s.stop - s.start for s in slices], device) for slices in sides)
    return _Calls(own, _Part(queries, keys, causal=False), responses, prompts)


def _indices(slices: Sequence[slice]) -> torch.Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *(torch.arange(s.start, s.stop) for s in slices)])


class VarlenFlash(torch.autograd.Function):
    """Packed attention on GPUs: query [1, H, T, D], key and value [1, H_kv, T, D] to [1, T, H, D].

    The backward needs no merging: given the output and log-sum-exp of the whole softmax, the kernel's backward returns
    exactly each part's share of the gradient (see `attention._Packed`).
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scale: float
    ) -> torch.Tensor:
        """Compute both parts and merge them."""
        calls = _calls(segments, query.device)
        query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # [T, H, D]
        out, lse, *state = calls.own.forward(query, key, value, scale)
        if calls.shared is not None:
            responses, prompts = calls.responses, calls.prompts
            part, part_lse, *_ = calls.shared.forward(query[responses], key[prompts], value[prompts], scale)
            own_lse = lse[:, responses]
            total = torch.logaddexp(own_lse, part_lse)
            # Each part's share of the softmax; summed in float32, where half precision would round twice.
            own, other = (torch.exp(each - total).t()[..., None] for each in (own_lse, part_lse))
            out[responses] = (out[responses].float() * own + part.float() * other).to(out.dtype)
            lse[:, responses] = total
        ctx.save_for_backward(query, key, value, out, lse, *state)
        ctx.segments, ctx.scale = segments, scale
        return out[None]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Sum both parts' gradients of query, key and value."""
        saved = ctx.saved_tensors  # read once: checkpointing refuses a second access
        query, key, value, out, lse, *state = saved
        calls, grad = _calls(ctx.segments, query.device), grads[0][0].contiguous()
        found = calls.own.backward(grad, saved, ctx.scale)
        if calls.shared is not None:
            responses, prompts = calls.responses, calls.prompts
            ends = out[responses], lse[:, responses].contiguous()
            taken = (query[responses], key[prompts], value[prompts], *ends, *state)
            parts = calls.shared.backward(grad[responses], taken, ctx.scale)
            # Index sets without repetition: each token belongs to one response, each prompt occurs once.
            for whole, part, where in zip(found, parts, (responses, prompts, prompts), strict=True):
                whole[where] += part
        return *(whole.transpose(0, 1)[None] for whole in found), None, None
