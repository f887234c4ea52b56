"""The GPU's packed attention on a CPU: its kernels written out in PyTorch, everything around them as it is.

They compute in float64, so that what is left is the rounding of what is around them, and of the CPU's attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention
from torch.utils.checkpoint import checkpoint

from rlsys.models.kernels.attention import flex, packed_attention
from rlsys.models.kernels.flash import VarlenFlash, is_usable
from rlsys.models.kernels.segments import Segment, Segments, segments_of
from tests.unit.models.test_packing import structures

Tensors = tuple[torch.Tensor, ...]


def _pieces(ends: torch.Tensor) -> list[slice]:
    assert ends.dtype == torch.int32
    assert ends[0] == 0
    return [slice(int(start), int(end)) for start, end in itertools.pairwise(ends)]


def _scores(query: torch.Tensor, key: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    """Compute scores [H, q, k] of query [q, H, D] and key [k, H_kv, D]."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[1:], dtype=torch.bool).tril(), float("-inf"))
    return scores


def forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends_q: torch.Tensor,
    ends_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    causal: bool,
    debug: bool,
    *,
    scale: float,
    **_: object,
) -> Tensors:
    """Compute output [T, H, D] and log-sum-exp [H, T], sequence by sequence."""
    out, lse = torch.empty_like(query), torch.empty(query.shape[1], len(query))
    pieces = list(zip(_pieces(ends_q), _pieces(ends_k), strict=True))
    assert pieces[-1][0].stop == len(query)
    assert pieces[-1][1].stop == len(key)
    assert max_q == max(q.stop - q.start for q, _ in pieces)
    assert max_k == max(k.stop - k.start for _, k in pieces)
    for q, k in pieces:
        scores = _scores(query[q], key[k], causal, scale)
        spread = value[k].repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        out[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), spread)
        lse[:, q] = scores.logsumexp(-1)
    return out, lse, torch.zeros(2, dtype=torch.uint64), torch.zeros(0), torch.zeros(0)


def backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    ends_q: torch.Tensor,
    ends_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    causal: bool,
    state: torch.Tensor,
    unused: torch.Tensor,
    *,
    scale: float,
    **_: object,
) -> Tensors:
    """Apply the formulas of flash attention: probabilities from the given log-sum-exp, row sums from the output."""
    assert lse.is_contiguous()
    assert state.dtype == torch.uint64
    found = [torch.zeros_like(tensor) for tensor in (query, key, value)]
    times = query.shape[1] // key.shape[1]
    for q, k in zip(_pieces(ends_q), _pieces(ends_k), strict=True):
        spread_k, spread_v = (tensor[k].repeat_interleave(times, dim=1) for tensor in (key, value))
        weights = torch.exp(_scores(query[q], key[k], causal, scale) - lse[:, q, None])
        delta = (grad[q] * out[q]).sum(-1).t()[..., None]
        slopes = weights * (torch.einsum("qhd,khd->hqk", grad[q], spread_v) - delta) * scale
        found[0][q] = torch.einsum("hqk,khd->qhd", slopes, spread_k)
        found[1][k] = torch.einsum("hqk,qhd->khd", slopes, query[q]).unflatten(1, (-1, times)).sum(2)
        found[2][k] = torch.einsum("hqk,qhd->khd", weights, grad[q]).unflatten(1, (-1, times)).sum(2)
    return tuple(found)


def in_float64(kernel: Callable[..., Tensors]) -> Callable[..., Tensors]:
    def run(*args: Any, **options: Any) -> Tensors:
        is_number = [isinstance(arg, torch.Tensor) and arg.is_floating_point() for arg in args]
        found = kernel(*(a.double() if number else a for a, number in zip(args, is_number, strict=True)), **options)
        return tuple(tensor.float() if tensor.dtype is torch.float64 else tensor for tensor in found)

    return run


@pytest.fixture(autouse=True, scope="module")
def kernels() -> Iterator[None]:
    """Register the kernels for CPUs; PyTorch has them for GPUs only. Flex attention's backward is there, but locked."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", in_float64(forward), "CPU")
    library.impl("_flash_attention_backward", in_float64(backward), "CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        patch.setattr(flex_attention, "_validate_device", lambda *_: None)
        yield
    library._destroy()


@pytest.mark.parametrize("attend", [VarlenFlash.apply, flex], ids=["flash", "flex"])
@settings(max_examples=30, deadline=None)
@given(structures(), st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
def test_both_paths_of_gpus_make_the_attention_of_the_cpu(
    attend: Any, segments: Segments, kv_heads: int, seed: int
) -> None:
    """In float32, to 1e-6 of the largest number; gradients, which add up more terms, to 2e-6."""
    generator = torch.Generator().manual_seed(seed)
    size = segments.size
    inputs = [torch.randn(1, h, size, 16, generator=generator).requires_grad_() for h in (4, kv_heads, kv_heads)]
    grad = torch.randn(1, size, 4, 16, generator=generator)
    expected, _ = packed_attention(torch.nn.Module(), *inputs, None, segments=segments)  # type: ignore[arg-type]
    out = attend(*inputs, segments, 16**-0.5)
    assert difference(out, expected) < 1e-6
    gradients = (torch.autograd.grad(found, inputs, grad) for found in (out, expected))
    for mine, theirs in zip(*gradients, strict=True):
        assert difference(mine, theirs) < 2e-6


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, as a share of the largest number or of 1: gradients of single tokens are 0."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1.0))


def test_it_can_be_checkpointed() -> None:
    members = [Segment(0, 7, None), Segment(7, 12, 0), Segment(12, 13, 0)]
    segments = segments_of(members, 13)
    inputs = [torch.randn(1, 2, 13, 8).requires_grad_() for _ in range(3)]

    def attend(*rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = VarlenFlash.apply(*rows, segments, 0.3)
        return out

    again = torch.autograd.grad(checkpoint(attend, *inputs, use_reentrant=False).sum(), inputs)
    for one, other in zip(again, torch.autograd.grad(attend(*inputs).sum(), inputs), strict=True):
        assert torch.equal(one, other)


def test_a_cpu_has_no_such_kernels() -> None:
    assert not is_usable(torch.zeros(1, 2, 3, 16, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_kernels_themselves_agree_with_flex_attention() -> None:
    """In bfloat16, to its precision."""
    members = [Segment(0, 70, None), Segment(70, 120, 0), Segment(120, 131, 0), Segment(131, 200, None)]
    segments = segments_of(members, 200).to(torch.device("cuda"))
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [
        torch.randn(1, h, 200, 64, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for h in (4, 2, 2)
    ]
    assert is_usable(inputs[0])
    out, expected = VarlenFlash.apply(*inputs, segments, 0.125), flex(*inputs, segments, 0.125)
    assert torch.allclose(out, expected, atol=2e-2)
    grad = torch.randn_like(out)
    for mine, theirs in zip(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=5e-2, rtol=5e-2)
