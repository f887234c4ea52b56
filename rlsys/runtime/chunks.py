"""Trajectories of groups and the chunks they came in: a task takes whole chunks as arguments, and places as plain data.

So token arrays go from worker to worker, and the driver only says which of them are meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from rlsys.types import TrajectoryRef

T = TypeVar("T")
Place = tuple[int, int]
"""Which of a task's chunks, and where in it."""


def chunks_of(groups: Iterable[Sequence[TrajectoryRef]]) -> tuple[list[Any], list[list[Place]]]:
    """The distinct chunks that hold the groups' trajectories, and each trajectory's place in them."""
    numbers: dict[Any, int] = {}
    places = [[(numbers.setdefault(ref.chunk, len(numbers)), ref.index) for ref in refs] for refs in groups]
    return list(numbers), places


def picked(chunks: Sequence[Sequence[T]], places: Sequence[Sequence[Place]]) -> list[list[T]]:
    """What lies at `places`, in the same nesting."""
    return [[chunks[chunk][index] for chunk, index in group] for group in places]
