"""One event loop for a benchmark's whole process, in which plain functions run rlsys' coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
RUNNER = asyncio.Runner()


def wait(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result."""
    return RUNNER.run(work)
