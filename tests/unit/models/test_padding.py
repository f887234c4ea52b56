"""Padding, and the two divisions of work."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.models.padding import pad, split_microbatches
from rlsys.runtime.balance import balance

LENGTHS = st.lists(st.integers(1, 50), max_size=30)


def test_pad_by_hand() -> None:
    padded = pad([np.array([1, 2, 3]), np.array([], dtype=np.int32), np.array([4])], torch.int64)
    assert padded.tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]
    assert padded.dtype == torch.int64


def test_pad_of_nothing() -> None:
    assert pad([], torch.float32).shape == (0, 0)


def test_pad_copies_read_only_arrays() -> None:
    array = np.array([1.5, 2.5], dtype=np.float32)
    array.setflags(write=False)  # as arrays out of the object store are
    padded = pad([array], torch.float32)
    padded[0, 0] = 9.0
    assert array.tolist() == [1.5, 2.5]


def test_split_by_hand() -> None:
    # Longest first: 6 | 4 and 3 (2 rows * 4 = 8 <= 10, a third would be 12) | 3, 1 (2 * 3 = 6, and no more rows)
    assert split_microbatches([3, 6, 1, 4, 3], max_tokens=10) == [[1], [3, 0], [4, 2]]


@given(LENGTHS, st.integers(1, 120))
def test_every_row_is_in_one_microbatch_that_fits(lengths: list[int], max_tokens: int) -> None:
    microbatches = split_microbatches(lengths, max_tokens)
    assert sorted(index for rows in microbatches for index in rows) == list(range(len(lengths)))
    for rows in microbatches:
        assert rows
        assert len(rows) == 1 or len(rows) * max(lengths[i] for i in rows) <= max_tokens


def test_balance_by_hand() -> None:
    # 7 to part 0, 5 to part 1, 4 to part 1 (5 < 7), 3 to part 0 (7 < 9): loads 10 and 9
    assert balance([3, 7, 4, 5], 2) == [[1, 0], [3, 2]]


@given(LENGTHS, st.integers(1, 6))
def test_loads_differ_by_at_most_one_item(weights: list[int], num_parts: int) -> None:
    parts = balance(weights, num_parts)
    assert len(parts) == num_parts
    assert sorted(index for part in parts for index in part) == list(range(len(weights)))
    loads = [sum(weights[i] for i in part) for part in parts]
    assert max(loads) - min(loads) <= max(weights, default=0)
