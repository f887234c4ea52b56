"""Fingerprints of tensors: small enough to keep for every parameter, and able to show that two tensors differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from rlsys.weights.checksum import checksum

CHUNK = 2**20  # elements that are converted to float64 at once


@dataclass(frozen=True)
class Fingerprint:
    """A tensor in float32: its bits as a checksum, and two numbers that a little rounding changes little."""

    bits: str
    norm: float
    projection: float  # on a fixed direction, so that a gradient that only turns shows too

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Fingerprint:
        """Return the fingerprint of a tensor of any dtype."""
        flat = tensor.detach().to("cpu", torch.float32).contiguous().view(-1)
        squares = projection = 0.0
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK].double()
            places = torch.arange(start, start + part.numel(), dtype=torch.float64)
            squares += float(part @ part)
            projection += float(part @ torch.cos(places))
        return cls(f"{int(checksum(flat.view(torch.uint8))) % 2**64:016x}", math.sqrt(squares), projection)

    def is_near(self, other: Fingerprint, tolerance: float) -> bool:
        """Return whether the difference is at most about `tolerance` times the norm; NaN is near to nothing."""
        bound = tolerance * max(self.norm, other.norm)
        return abs(self.norm - other.norm) <= bound and abs(self.projection - other.projection) <= bound


def fingerprints(tensors: Iterable[tuple[str, torch.Tensor | None]]) -> dict[str, Fingerprint]:
    """Return the fingerprints of named tensors; None stands for a tensor that does not exist, and is left out."""
    return {name: Fingerprint.of(tensor) for name, tensor in tensors if tensor is not None}
