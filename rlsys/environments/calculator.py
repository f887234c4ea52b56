"""A calculator, as a tool: `tools=[rlsys.environments.calculator:multiply]`."""

from __future__ import annotations


def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        The product.
    """
    return int(a) * int(b)
