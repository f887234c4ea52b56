"""Layouts of trajectories, and attention over them compared with an explicit mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.errors import RlsysError
from rlsys.models.kernels.attention import packed_attention
from rlsys.models.kernels.segments import Segment, Segments, segments_of
from rlsys.models.packing import LAYOUTS, TokenRow, microbatches, token_batch

PROMPT = [7, 8, 9]
ROWS = [
    TokenRow(np.array([*PROMPT, 1, 2]), np.array([False] * 3 + [True] * 2), group=5),
    TokenRow(np.array([4, 0, 6]), np.array([False, True, True]), group=6),
    TokenRow(np.array([*PROMPT, 3]), np.array([False] * 3 + [True]), group=5),
]


def test_padded_by_hand() -> None:
    batch = token_batch(ROWS, "padded")
    assert batch.input_ids.tolist() == [[7, 8, 9, 1, 2], [4, 0, 6, 0, 0], [7, 8, 9, 3, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1] * 5, [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]  # token 0 is not padding
    assert batch.prefixes.tolist() == [2, 3, 5, 6, 12]
    assert batch.targets.tolist() == [1, 2, 0, 6, 3]


def test_packed_by_hand() -> None:
    batch = token_batch(ROWS, "packed")
    assert batch.input_ids.tolist() == [[7, 8, 9, 1, 2, 4, 0, 6, 7, 8, 9, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]]
    assert batch.prefixes.tolist() == [2, 3, 5, 6, 10]
    assert batch.targets.tolist() == [1, 2, 0, 6, 3]
    assert batch.attention_mask is None


def test_shared_prompt_by_hand() -> None:
    batch = token_batch(ROWS, "shared_prompt")
    assert batch.input_ids.tolist() == [[7, 8, 9, 1, 2, 3, 4, 0, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2]]
    assert batch.prefixes.tolist() == [2, 3, 6, 7, 2]  # the prompt's last state predicts two tokens
    assert batch.targets.tolist() == [1, 2, 0, 6, 3]
    assert batch.segments is not None
    assert [(s.start, s.end, s.prompt) for s in batch.segments.members] == [
        (0, 3, None),
        (3, 5, 0),
        (5, 6, 0),
        (6, 9, None),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_of_target_tokens_return_to_their_rows_and_columns(layout: str) -> None:
    batch = token_batch(ROWS, layout)
    spread = batch.spread(batch.targets)
    for number, row in enumerate(ROWS):
        assert spread[number, : len(row.token_ids)].tolist() == np.where(row.loss_mask, row.token_ids, 0).tolist()


def test_prompts_that_differ_are_not_shared() -> None:
    other = TokenRow(np.array([7, 8, 1, 3]), ROWS[2].loss_mask, group=5)
    assert token_batch([ROWS[0], other], "shared_prompt").input_ids.numel() == 9


def test_microbatches_by_hand() -> None:
    # Group 5 takes 6 tokens with one prompt, group 6 takes 3; packed the rows take 5, 4 and 3.
    assert microbatches(ROWS, 9, "shared_prompt") == [[0, 2, 1]]
    assert microbatches(ROWS, 6, "shared_prompt") == [[0, 2], [1]]
    assert microbatches(ROWS, 5, "shared_prompt") == [[0], [2], [1]]  # the second response does not fit
    assert microbatches(ROWS, 8, "packed") == [[0, 1], [2]]


@st.composite
def trajectories(draw: st.DrawFn) -> list[TokenRow]:
    made = []
    for group in range(draw(st.integers(1, 4))):
        prompt = np.arange(draw(st.integers(1, 9)))
        for _ in range(draw(st.integers(1, 5))):
            size = draw(st.integers(0, 12))
            made.append(
                TokenRow(
                    np.concatenate([prompt, np.full(size, 50)]), np.arange(len(prompt) + size) >= len(prompt), group
                )
            )
    return draw(st.permutations(made))


@settings(max_examples=60, deadline=None)
@given(trajectories(), st.integers(1, 60), st.sampled_from(LAYOUTS))
def test_every_row_is_in_one_microbatch_that_fits(rows: list[TokenRow], max_tokens: int, layout: str) -> None:
    parts = microbatches(rows, max_tokens, layout)
    assert sorted(index for part in parts for index in part) == list(range(len(rows)))
    for part in parts:
        assert len(part) == 1 or token_batch([rows[i] for i in part], layout).input_ids.numel() <= max_tokens


def explicit_mask(segments: Segments) -> torch.Tensor:
    """Return [T, T] bool: whether the row's token sees the column's."""
    mask = torch.zeros(segments.size, segments.size, dtype=torch.bool)
    for segment in segments.members:
        for index in range(segment.start, segment.end):
            mask[index, segment.start : index + 1] = True
            if segment.prompt is not None:
                prompt = segments.members[segment.prompt]
                mask[index, prompt.start : prompt.end] = True
    return mask


@st.composite
def structures(draw: st.DrawFn) -> Segments:
    members: list[Segment] = []
    total = 0
    for _ in range(draw(st.integers(1, 4))):
        prompt = len(members) if draw(st.booleans()) else None
        lengths = draw(st.lists(st.integers(1, 20), min_size=2 if prompt is not None else 1, max_size=6))
        for number, length in enumerate(lengths):
            members.append(Segment(total, total + length, prompt if number else None))
            total += length
    return segments_of(members, total)


@settings(max_examples=40, deadline=None)
@given(structures(), st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
def test_attention_follows_the_structure(segments: Segments, kv_heads: int, seed: int) -> None:
    """Output and gradients are those of scaled_dot_product_attention under the explicit mask."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    size = segments.size
    inputs = [noise(1, heads, size, 16).requires_grad_() for heads in (4, kv_heads, kv_heads)]
    grad = noise(1, size, 4, 16)
    out, _ = packed_attention(torch.nn.Module(), *inputs, None, segments=segments)  # type: ignore[arg-type]
    mine = torch.autograd.grad(out, inputs, grad)
    expected = torch.nn.functional.scaled_dot_product_attention(
        inputs[0],
        inputs[1].repeat_interleave(4 // kv_heads, dim=1),
        inputs[2].repeat_interleave(4 // kv_heads, dim=1),
        attn_mask=explicit_mask(segments),
    ).transpose(1, 2)
    assert torch.allclose(out, expected, atol=1e-5)
    for one, other in zip(mine, torch.autograd.grad(expected, inputs, grad), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("extra", [{"softcap": 30.0}, {"sliding_window": 8}, {"s_aux": 1}, {"dropout": 0.1}])
def test_unsupported_arguments_are_refused(extra: dict[str, Any]) -> None:
    heads = torch.zeros(1, 1, 2, 16)
    segments = segments_of([Segment(0, 2, None)], 2)
    with pytest.raises(RlsysError, match=r"packed attention does not support"):
        packed_attention(torch.nn.Module(), heads, heads, heads, None, segments=segments, **extra)
