"""Orders of prompts: the prompt at each position of an endless stream, from the seed and the position alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

BLOCK = 1000  # positions over which a mixture keeps its weights exactly


class Order(Protocol):
    """A function from positions to numbers of prompts."""

    def at(self, position: int) -> int:
        """Return the number of the prompt at a position (from 0)."""
        ...


class EpochOrder:
    """An order in epochs: each of `size` prompts once before any comes again, shuffled anew in each epoch."""

    def __init__(self, size: int, seed: Sequence[int], *, shuffle: bool) -> None:
        self._size = size
        self._seed = list(seed)
        self._shuffle = shuffle
        self._epoch = -1
        self._order = np.arange(size)

    def at(self, position: int) -> int:
        """Return the number of the prompt at a position."""
        epoch, offset = divmod(position, self._size)
        # A generator per epoch: any position can be computed without the ones before it, as a resumed run needs.
        if self._shuffle and epoch != self._epoch:
            self._order = np.random.default_rng([*self._seed, epoch]).permutation(self._size)
            self._epoch = epoch
        return int(self._order[offset])


class MixtureOrder:
    """An order that draws from several parts in proportion to their weights; each part has epochs of its own.

    In every block of `BLOCK` positions a part has a fixed number: with weights 3 and 1, 750 and 250 of 1000.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, *, shuffle: bool) -> None:
        self._firsts = np.cumsum([0, *sizes])
        self._quotas = quotas(weights, BLOCK)
        self._seed = seed
        self._shuffle = shuffle
        # The 2 keeps these streams of random numbers apart from those of the blocks, which have a 1.
        self._parts = [EpochOrder(size, [seed, 2, part], shuffle=shuffle) for part, size in enumerate(sizes)]
        self._block = -1
        # Spread each part evenly: the k-th of its q positions lies near (k + 1/2) / q of the block.
        middles = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in self._quotas])
        owners = np.repeat(np.arange(len(sizes)), self._quotas)
        self._pattern = owners[np.argsort(middles, kind="stable")]
        self._owners = self._pattern

    def at(self, position: int) -> int:
        """Return the number of the prompt at a position, counted over all parts."""
        block, offset = divmod(position, BLOCK)
        if self._shuffle and block != self._block:
            self._owners = np.random.default_rng([self._seed, 1, block]).permutation(self._pattern)
            self._block = block
        part = int(self._owners[offset])
        # How often the part came before: in the earlier blocks, and in this one.
        within_part = block * self._quotas[part] + int(np.count_nonzero(self._owners[:offset] == part))
        return int(self._firsts[part]) + self._parts[part].at(within_part)


def quotas(weights: Sequence[float], total: int) -> list[int]:
    """Return whole numbers in proportion to `weights` that add up to `total` (method of the largest remainders).

    Each is at least 1 if no weight is below its share of `total`, as `sources_of` sees to.
    """
    exact = np.asarray(weights, dtype=np.float64) / float(np.sum(weights)) * total
    counts = np.floor(exact).astype(int)
    # The largest fractional parts are rounded up until the total is reached.
    for index in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[index] += 1
    return [int(count) for count in counts]
