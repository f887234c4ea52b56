"""Numbers as arguments of a command."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(bound: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that refuses those below `bound`."""

    def parse(text: str) -> int:
        number = int(text)
        if number < bound:
            raise argparse.ArgumentTypeError(f"must be at least {bound}, not {number}")
        return number

    parse.__name__ = "whole number"  # argparse puts it into "invalid ... value"
    return parse


def positive(text: str) -> float:
    """Parse a number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {number:g}")
    return number
