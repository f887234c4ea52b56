"""Padding of arrays of different lengths, and microbatches of padded rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def pad(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
    """Stack 1-D arrays of different lengths into [B, T], with zeros on the right."""
    width = max((len(array) for array in arrays), default=0)
    out = torch.zeros(len(arrays), width, dtype=dtype)
    for row, array in enumerate(arrays):
        # Copied: arrays out of Ray's object store are read-only, which torch does not know.
        out[row, : len(array)] = torch.from_numpy(np.array(array))
    return out


def split_microbatches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group rows of similar length so that rows * longest <= max_tokens; return indices, longest rows first.

    A row longer than `max_tokens` gets a microbatch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    microbatches: list[list[int]] = []
    for index in order:
        current = microbatches[-1] if microbatches else None
        # In descending order the first row of a microbatch is its width.
        if current is not None and (len(current) + 1) * lengths[current[0]] <= max_tokens:
            current.append(index)
        else:
            microbatches.append([index])
    return microbatches
