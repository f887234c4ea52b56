"""The content of one broadcast: names, dtypes and shapes of parameters, and their division into buckets.

Both sides know it before a byte is sent, so the bytes need no headers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch


@dataclass(frozen=True)
class Entry:
    """One tensor, under the name that checkpoints have for it and with its whole shape.

    Neighbours with the same `unit` are parts of one parameter and travel in one bucket, so that it is gathered once.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    unit: int = -1

    @property
    def num_bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


Manifest = Sequence[Entry]


def total_bytes(entries: Sequence[Entry]) -> int:
    """Return the size of a bucket or of a whole broadcast."""
    return sum(entry.num_bytes for entry in entries)


def buckets(manifest: Manifest, max_bytes: int) -> list[list[Entry]]:
    """Divide consecutive entries into buckets of at most `max_bytes`; a larger unit gets a bucket of its own.

    The order is kept (layer by layer), and both sides compute the same division from the same manifest.
    """
    packed: list[list[Entry]] = []
    size = 0
    for unit in _units(manifest):
        if packed and size + total_bytes(unit) <= max_bytes:
            packed[-1] += unit
            size += total_bytes(unit)
        else:
            packed.append(unit)
            size = total_bytes(unit)
    return packed


def _units(manifest: Manifest) -> list[list[Entry]]:
    # An entry outside of any unit (-1) is one by itself: its position tells it from its neighbours.
    keyed = groupby(enumerate(manifest), key=lambda item: item[1].unit if item[1].unit >= 0 else ~item[0])
    return [[entry for _, entry in members] for _, members in keyed]


def pack_bucket(tensors: Sequence[torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
    """Copy the tensors one after another into [bytes] uint8: the beginning of `out`, or new memory without it."""
    # Viewed as bytes, tensors of different dtypes fit into one buffer.
    parts = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    return torch.cat(parts, out=None if out is None else out[: sum(part.numel() for part in parts)])


def views(buffer: torch.Tensor, bucket: Sequence[Entry]) -> list[tuple[str, torch.Tensor]]:
    """Return a bucket's named tensors as views of the buffer.

    A tensor whose bytes do not begin at a multiple of its element's size is a copy, since torch cannot view it.
    """
    parts = buffer.split([entry.num_bytes for entry in bucket])
    return [(entry.name, _typed(part, entry)) for entry, part in zip(bucket, parts, strict=True)]


def _typed(part: torch.Tensor, entry: Entry) -> torch.Tensor:
    is_aligned = part.storage_offset() % entry.dtype.itemsize == 0
    return (part if is_aligned else part.clone()).view(entry.dtype).view(entry.shape)


def to_update_info(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as columns of plain values, the form in which vLLM passes it to its worker processes."""
    return {
        "names": [entry.name for entry in manifest],
        "dtype_names": [str(entry.dtype).removeprefix("torch.") for entry in manifest],
        "shapes": [list(entry.shape) for entry in manifest],
        "units": [entry.unit for entry in manifest],
    }


def from_update_info(update_info: Mapping[str, Any]) -> Manifest:
    """Return the manifest that `to_update_info` was given."""
    columns = (update_info[key] for key in ("names", "dtype_names", "shapes", "units"))
    rows = zip(*columns, strict=True)
    return [Entry(name, getattr(torch, dtype), tuple(shape), unit) for name, dtype, shape, unit in rows]
