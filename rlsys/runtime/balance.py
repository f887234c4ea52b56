"""Division of work among workers."""

from __future__ import annotations

from collections.abc import Sequence


def balance(weights: Sequence[int], num_parts: int) -> list[list[int]]:
    """Divide items into parts with nearly equal sums of weights, and return each part's item numbers.

    Greedy: the heaviest items first, each to the part that is lightest so far.
    """
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for index in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        # Ties go to the first part, so that the result is the same everywhere.
        lightest = min(range(num_parts), key=lambda part: (loads[part], part))
        parts[lightest].append(index)
        loads[lightest] += weights[index]
    return parts
