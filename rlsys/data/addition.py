"""Integer addition, generated on the spot: the prompt `37+58=` with the answer `95`."""

from __future__ import annotations

import numpy as np

from rlsys.data import Row, register
from rlsys.errors import ConfigError


@register("addition")
def addition(split: str, *, max_operand: int = 99, held_out: int = 200, seed: int = 0) -> list[Row]:
    """Return sums of two integers in [0, max_operand]: `held_out` of them as the split test, the others as train.

    The splits are disjoint for the same `max_operand`, `held_out` and `seed`.
    """
    for option, value in {"max_operand": max_operand, "held_out": held_out, "seed": seed}.items():
        if value < 0:
            raise ConfigError(f"data source 'addition': option '{option}' is {value!r}, it must be a whole number >= 0")
    if split not in ("train", "test"):
        raise ConfigError(f"data source 'addition' has no split '{split}': it has train and test")
    size = max_operand + 1
    order = np.random.default_rng(seed).permutation(size * size)
    chosen = order[:held_out] if split == "test" else order[held_out:]
    pairs = [(int(index) // size, int(index) % size) for index in chosen]
    return [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in pairs]
