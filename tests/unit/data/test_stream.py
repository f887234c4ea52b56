"""The endless order of prompts and its cursor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlsys.data.order import EpochOrder
from rlsys.data.stream import PromptStream
from rlsys.types import Prompt


def stream(
    size: int, seed: int = 0, *, shuffle: bool = True, cursor: int = 0, pending: Sequence[int] = ()
) -> PromptStream:
    prompts = [Prompt(index, f"{index}", np.array([index], dtype=np.int32)) for index in range(size)]
    return PromptStream(prompts, EpochOrder(size, [seed], shuffle=shuffle), cursor=cursor, pending=pending)


def take(source: PromptStream, count: int) -> list[int]:
    return [source.take()[1].index for _ in range(count)]


@given(st.integers(1, 20), st.integers(0, 5))
def test_every_prompt_comes_once_an_epoch(size: int, seed: int) -> None:
    source = stream(size, seed)
    for _ in range(3):
        assert sorted(take(source, size)) == list(range(size))


@given(st.integers(1, 12), st.lists(st.integers(0, 9), max_size=8), st.integers(0, 5))
def test_the_order_does_not_depend_on_how_much_is_taken_at_once(size: int, counts: list[int], seed: int) -> None:
    source = stream(size, seed)
    parts = [take(source, count) for count in counts]
    assert [index for part in parts for index in part] == take(stream(size, seed), sum(counts))


@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 20))
def test_from_a_cursor_the_same_order_goes_on(size: int, before: int, after: int) -> None:
    interrupted = stream(size)
    take(interrupted, before)
    assert interrupted.cursor == before
    assert take(stream(size, cursor=interrupted.cursor), after) == take(interrupted, after)


def test_the_seed_and_the_epoch_decide_the_order() -> None:
    assert take(stream(50, seed=1), 50) == take(stream(50, seed=1), 50)
    assert take(stream(50, seed=1), 50) != take(stream(50, seed=2), 50)
    source = stream(50, seed=1)
    assert take(source, 50) != take(source, 50)


def test_without_shuffling_the_order_is_the_data_s() -> None:
    assert take(stream(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]
    assert take(stream(3, shuffle=False, cursor=4), 2) == [1, 2]


def test_what_was_not_trained_comes_again_first() -> None:
    """Of positions 0 to 5 three were trained, out of order, before the run was cut off."""
    whole = stream(4)
    handed_out = [whole.take() for _ in range(9)]
    resumed = stream(4, cursor=6, pending=[5, 1, 3])
    assert resumed.pending == [1, 3, 5]
    again = [resumed.take() for _ in range(6)]
    assert [position for position, _ in again] == [1, 3, 5, 6, 7, 8]
    assert [prompt.index for _, prompt in again] == [handed_out[position][1].index for position, _ in again]
    assert resumed.pending == []


def test_the_digest_tells_other_prompts_and_another_order() -> None:
    assert stream(9).digest == stream(9, cursor=5).digest
    assert len({stream(9).digest, stream(10).digest, stream(9, seed=1).digest, stream(9, shuffle=False).digest}) == 4
