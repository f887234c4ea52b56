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
