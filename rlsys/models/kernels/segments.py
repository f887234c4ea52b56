"""The structure of a packed row: causal segments, some of which also see all of a shared prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

SPREAD = 1.25  # segments are computed together while the longest is at most this many times the shortest


@dataclass(frozen=True)
class Segment:
    """Tokens `[start, end)` of a packed row.

    Each sees itself and those before it in the segment, and all tokens of the segment with index `prompt`, if given.
    """

    start: int
    end: int
    prompt: int | None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.end - self.start


@dataclass(frozen=True)
class Bucket:
    """Segments of similar length, padded to the longest, as a kernel takes them together: [num, longest] tokens."""

    indices: torch.Tensor  # [num * longest] int64, indices of the row's tokens; the row's length where there is padding
    num: int
    padding: torch.Tensor  # int64, the entries of `indices` that are padding


@dataclass(frozen=True)
class SharedPrompt:
    """A prompt and the responses that follow it, both contiguous in the row."""

    prompt: slice
    responses: slice


@dataclass(frozen=True, eq=False)  # hashed by identity: a block mask is made once for each object
class Segments:
    """The structure of one packed row of `size` tokens."""

    size: int
    members: tuple[Segment, ...]  # in the order of the row, covering it
    buckets: tuple[Bucket, ...]
    shared: tuple[SharedPrompt, ...]

    def to(self, device: torch.device) -> Segments:
        """Return the same structure with its index tensors on `device`."""
        moved = tuple(Bucket(b.indices.to(device), b.num, b.padding.to(device)) for b in self.buckets)
        return Segments(self.size, self.members, moved, self.shared)

    def ids(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each token's segment and the prompt of that segment (-1 for none), [size] int64 each."""
        lengths = torch.tensor([segment.length for segment in self.members])
        prompts = torch.tensor([-1 if segment.prompt is None else segment.prompt for segment in self.members])
        own = torch.repeat_interleave(torch.arange(len(self.members)), lengths)
        return own.to(device), prompts[own].to(device)


def segments_of(members: Sequence[Segment], size: int) -> Segments:
    """Build the structure of a row of `size` tokens.

    Args:
        members: segments that fill the row one after another; those with a prompt directly after that prompt.
        size: number of tokens of the row.
    """
    responses: defaultdict[int, list[Segment]] = defaultdict(list)
    for segment in members:
        if segment.prompt is not None:
            responses[segment.prompt].append(segment)
    shared = tuple(
        SharedPrompt(slice(members[prompt].start, members[prompt].end), slice(those[0].start, those[-1].end))
        for prompt, those in responses.items()
    )
    return Segments(size, tuple(members), tuple(_buckets(members, size)), shared)


def _buckets(members: Sequence[Segment], size: int) -> list[Bucket]:
    # From longest to shortest: a bucket closes when a segment would need more than a quarter of its length as padding.
    ordered = sorted((s for s in members if s.length), key=lambda s: (-s.length, s.start))
    groups: list[list[Segment]] = []
    for segment in ordered:
        if groups and groups[-1][0].length <= SPREAD * segment.length:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return [_bucket(group, size) for group in groups]


def _bucket(group: Sequence[Segment], size: int) -> Bucket:
    indices = torch.full((len(group), group[0].length), size, dtype=torch.int64)  # [num, longest]
    for row, segment in enumerate(group):
        indices[row, : segment.length] = torch.arange(segment.start, segment.end)
    flat = indices.flatten()
    return Bucket(flat, len(group), (flat == size).nonzero().flatten())
