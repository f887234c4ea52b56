"""Sums over bytes: what changes them and what does not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.weights.checksum import COLUMNS, WORD, checksum, word_sum

ROW = COLUMNS * WORD
SIZES = [1, 7, 8, 9, ROW - 1, ROW, ROW + 1, 3 * ROW + 40]


def filled(num_bytes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("num_bytes", SIZES)
@given(st.data())
def test_every_changed_bit_changes_the_checksum(num_bytes: int, data: st.DataObject) -> None:
    sent = filled(num_bytes)
    place, bit = data.draw(st.integers(0, num_bytes - 1)), data.draw(st.integers(0, 7))
    received = sent.clone()
    received[place] ^= 1 << bit
    assert int(checksum(received)) != int(checksum(sent))
    assert int(checksum(sent.clone())) == int(checksum(sent))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, COLUMNS), (3, 2 * COLUMNS + 3), (5, 3 * COLUMNS + 2)])
def test_words_that_change_places_change_the_checksum(first: int, second: int) -> None:
    """In one row, in one column, and with the last row, which is not whole."""
    sent = filled(3 * ROW + 40)
    words = sent.clone().view(torch.int64)
    words[[first, second]] = words[[second, first]]
    assert int(checksum(words.view(torch.uint8))) != int(checksum(sent))


@pytest.mark.parametrize("offset", [0, 1, 4, 8])
def test_the_place_in_memory_does_not_matter(offset: int) -> None:
    sent = filled(1000)
    held = torch.cat([torch.zeros(offset, dtype=torch.uint8), sent])[offset:]
    assert int(checksum(held)) == int(checksum(sent))
    assert int(word_sum(held)) == int(word_sum(sent))


def test_a_bucket_of_nothing_has_a_checksum() -> None:
    assert int(checksum(torch.empty(0, dtype=torch.uint8))) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stack_sums_to_its_parts_in_any_order_and_with_padding(dtype: torch.dtype) -> None:
    parts = [torch.randn(rows, 12).to(dtype) for rows in (4, 3, 5)]
    expected = sum(int(word_sum(part)) for part in parts)
    padding = torch.zeros(7, 12, dtype=dtype)
    stacked = torch.cat([parts[2], parts[0], padding, parts[1]])
    assert (int(word_sum(stacked)) - expected) % 2**64 == 0
    assert (int(word_sum(stacked.roll(1, dims=1))) - expected) % 2**64 != 0
