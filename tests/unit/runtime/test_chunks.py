"""Trajectories of mixed groups are found again in the chunks they came in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlsys.runtime.chunks import chunks_of, pick
from rlsys.types import TrajectoryRef


def test_by_hand() -> None:
    groups = [[TrajectoryRef("b", 1), TrajectoryRef("a", 0)], [], [TrajectoryRef("b", 0)]]
    chunks, indices = chunks_of(groups)
    assert chunks == ["b", "a"]  # each once, in the order they are met
    assert indices == [[(0, 1), (1, 0)], [], [(0, 0)]]


@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=5), max_size=5))
def test_what_is_picked_is_what_was_meant(meant: list[list[tuple[int, int]]]) -> None:
    store = {f"chunk {c}": [(c, i) for i in range(7)] for c in range(5)}
    chunks, indices = chunks_of([TrajectoryRef(f"chunk {c}", i) for c, i in group] for group in meant)
    assert pick([store[chunk] for chunk in chunks], indices) == meant
