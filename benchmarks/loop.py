"""One event loop for a benchmark's whole process: rlsys' coroutines are called from plain functions."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
RUNNER = asyncio.Runner()


def wait(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    return RUNNER.run(work)
