"""Exact sums over the bytes of tensors, computed where they lie.

Both are sums of 8-byte words modulo 2**64. They cost 0.2 s (`checksum`) and 0.03 s (`word_sum`) per GiB on one CPU
core, and one or two passes over the memory on a GPU; nothing is copied to the host but the result.
"""

from __future__ import annotations

import torch

COLUMNS = 2048  # words per row of the table that `checksum` sums
WORD = 8  # bytes
FACTOR_STEP = 0x1E3779B97F4A7C16  # even, with bits all over: successive factors have little in common


def checksum(buffer: torch.Tensor) -> torch.Tensor:
    """Return a sum that depends on every byte and on its place: [num_bytes] uint8 to a scalar int64, on its device.

    The words form a table, whose column sums and row sums are multiplied by factors that differ from place to place. A
    changed word always changes the result, and words that have changed places nearly always do.
    """
    words = _words(buffer)
    num_whole = len(words) // COLUMNS * COLUMNS
    table, rest = words[:num_whole].view(-1, COLUMNS), words[num_whole:]
    last = torch.cat([rest, rest.new_zeros(COLUMNS - len(rest))])
    columns, rows = table.sum(0) + last, torch.cat([table.sum(1), last.sum()[None]])
    # One factor odd and one even: their sum is odd, so no change of a word is multiplied to 0.
    return (columns * _odd_factors(columns)).sum() + 2 * (rows * _odd_factors(rows)).sum()


def word_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor's words, a scalar int64 on its device.

    It is the same for a whole matrix and for the sum of its parts, so it can be compared between one that is stacked
    from several (q, k and v; the experts of a layer) and these. Padding with zeros does not change it.
    """
    return _words(tensor).sum()


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes as [n] int64; the last word is filled up with zeros."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    missing = -flat.numel() % WORD
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    elif flat.storage_offset() % WORD:
        flat = flat.clone()  # torch views words only at multiples of their size
    return flat.view(torch.int64)


def _odd_factors(places: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(places), device=places.device) * FACTOR_STEP + 1
