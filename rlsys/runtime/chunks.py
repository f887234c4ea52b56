"""Trajectories in chunks: workers return them in lists, one Ray object each, and tasks take whole chunks as arguments.

These helpers turn references to groups into (chunks, indices) and back. In this way token arrays go from worker to
worker, and the driver handles only indices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from rlsys.types import TrajectoryRef

T = TypeVar("T")
# The number of a chunk among those of a task, and the position in it.
ChunkIndex = tuple[int, int]


def chunks_of(groups: Iterable[Sequence[TrajectoryRef]]) -> tuple[list[Any], list[list[ChunkIndex]]]:
    """Return the distinct chunks that hold the groups' trajectories, and each trajectory's index in them."""
    numbers: dict[Any, int] = {}
    indices = [[(numbers.setdefault(ref.chunk, len(numbers)), ref.index) for ref in refs] for refs in groups]
    return list(numbers), indices


def pick(chunks: Sequence[Sequence[T]], indices: Sequence[Sequence[ChunkIndex]]) -> list[list[T]]:
    """Return the items at `indices`, in the same nesting."""
    return [[chunks[chunk][position] for chunk, position in group] for group in indices]
