"""Which prompt comes at which place of an endless stream: a function of the seed and the place alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

BLOCK = 1000
"""Places over which a mixture keeps its weights exactly."""


class Order(Protocol):
    """Places to numbers of prompts."""

    def at(self, place: int) -> int: ...


class EpochOrder:
    """All of `size` prompts once before any comes again; every epoch is a new shuffle."""

    def __init__(self, size: int, seed: Sequence[int], *, shuffle: bool) -> None:
        self._size = size
        self._seed = list(seed)
        self._shuffle = shuffle
        self._epoch = -1
        self._order = np.arange(size)

    def at(self, place: int) -> int:
        """The prompt at `place`."""
        epoch, position = divmod(place, self._size)
        if self._shuffle and epoch != self._epoch:
            self._order = np.random.default_rng([*self._seed, epoch]).permutation(self._size)
            self._epoch = epoch
        return int(self._order[position])


class MixtureOrder:
    """Several parts, drawn in proportion to weights; each in an epoch order of its own, however often it comes round.

    In every block of 1000 places each part has the same number of them, its weight's.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, *, shuffle: bool) -> None:
        self._firsts = np.cumsum([0, *sizes])
        self._quotas = quotas(weights, BLOCK)
        self._seed = seed
        self._shuffle = shuffle
        self._parts = [EpochOrder(size, [seed, 2, part], shuffle=shuffle) for part, size in enumerate(sizes)]
        self._block = -1
        # Spread evenly: the k-th of a part's q places lies near (k + 1/2) / q of the block.
        middles = np.concatenate([(np.arange(quota) + 0.5) / quota for quota in self._quotas])
        owners = np.repeat(np.arange(len(sizes)), self._quotas)
        self._pattern = owners[np.argsort(middles, kind="stable")]
        self._owners = self._pattern

    def at(self, place: int) -> int:
        """The prompt at `place`, counted over all parts."""
        block, offset = divmod(place, BLOCK)
        if self._shuffle and block != self._block:
            self._owners = np.random.default_rng([self._seed, 1, block]).permutation(self._pattern)
            self._block = block
        part = int(self._owners[offset])
        own_place = block * self._quotas[part] + int(np.count_nonzero(self._owners[:offset] == part))
        return int(self._firsts[part]) + self._parts[part].at(own_place)


def quotas(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `weights` that add up to `total` (largest remainders). One that would get none
    gets 1, from the one that has most."""
    exact = np.asarray(weights, dtype=np.float64) / float(np.sum(weights)) * total
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: total - int(counts.sum())]:
        counts[index] += 1
    for index in np.flatnonzero(counts == 0):
        counts[index], counts[np.argmax(counts)] = 1, counts.max() - 1
    return [int(count) for count in counts]
