"""Who sees whom in a packed row: causal stretches, some of them behind a root that they see whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

SPREAD = 1.25
"""Stretches are computed together while the longest is at most this many times the shortest."""


@dataclass(frozen=True)
class Stretch:
    """Tokens `[start, end)` of a packed row, each seeing those before it; and all of stretch `root`, where given."""

    start: int
    end: int
    root: int | None

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Bucket:
    """Stretches of similar length, padded to the longest: [num, longest] places of the row; `size` where padded."""

    places: torch.Tensor  # [num * longest] int64, the row's length for padding
    num: int
    padding: torch.Tensor  # int64 indices into `places`


@dataclass(frozen=True)
class Shared:
    """A root and the stretches behind it, both contiguous."""

    root: slice
    behind: slice


@dataclass(frozen=True, eq=False)  # hashed by identity: a block mask is made once for each
class Segments:
    """The structure of one packed row of `size` tokens."""

    size: int
    stretches: tuple[Stretch, ...]
    buckets: tuple[Bucket, ...]
    shared: tuple[Shared, ...]

    def to(self, device: torch.device) -> Segments:
        """The same with its index tensors on `device`."""
        moved = tuple(Bucket(b.places.to(device), b.num, b.padding.to(device)) for b in self.buckets)
        return Segments(self.size, self.stretches, moved, self.shared)

    def ids(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each token its stretch, and the root of that (-1 for none): [size] int64 each."""
        lengths = torch.tensor([stretch.length for stretch in self.stretches])
        roots = torch.tensor([-1 if stretch.root is None else stretch.root for stretch in self.stretches])
        own = torch.repeat_interleave(torch.arange(len(self.stretches)), lengths)
        return own.to(device), roots[own].to(device)


def segments_of(stretches: Sequence[Stretch], size: int) -> Segments:
    """Structure of a row that the stretches fill one after the other, those behind a root directly after it."""
    behind: defaultdict[int, list[Stretch]] = defaultdict(list)
    for stretch in stretches:
        if stretch.root is not None:
            behind[stretch.root].append(stretch)
    shared = tuple(
        Shared(slice(stretches[root].start, stretches[root].end), slice(those[0].start, those[-1].end))
        for root, those in behind.items()
    )
    return Segments(size, tuple(stretches), tuple(_buckets(stretches, size)), shared)


def _buckets(stretches: Sequence[Stretch], size: int) -> list[Bucket]:
    ordered = sorted((s for s in stretches if s.length), key=lambda s: (-s.length, s.start))
    groups: list[list[Stretch]] = []
    for stretch in ordered:
        if groups and groups[-1][0].length <= SPREAD * stretch.length:
            groups[-1].append(stretch)
        else:
            groups.append([stretch])
    return [_bucket(group, size) for group in groups]


def _bucket(group: Sequence[Stretch], size: int) -> Bucket:
    places = torch.full((len(group), group[0].length), size, dtype=torch.int64)
    for row, stretch in enumerate(group):
        places[row, : stretch.length] = torch.arange(stretch.start, stretch.end)
    flat = places.flatten()
    return Bucket(flat, len(group), (flat == size).nonzero().flatten())
