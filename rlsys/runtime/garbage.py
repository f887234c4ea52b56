"""Keeping Python's garbage collector out of the steps."""

from __future__ import annotations

import atexit
import contextlib
import gc
from collections.abc import Iterator


def freeze_started() -> None:
    """Collect garbage from now on, but never what exists now; a worker calls this once it has started.

    Until then the collector is off in workers (`rlsys/__init__.py`): it took a quarter of the time of all imports.

    What a worker holds by then, libraries and models, stays for good. Otherwise each full collection would walk these
    hundreds of thousands of objects again: 0.3 s every few steps, in the middle of a rollout.
    """
    gc.collect()
    gc.freeze()
    gc.enable()
    # What is frozen is not freed at the interpreter's end, and libraries that count their objects then report leaks
    # (nanobind, in triton's bindings).
    atexit.unregister(gc.unfreeze)  # registered once, however often a process freezes
    atexit.register(gc.unfreeze)


@contextlib.contextmanager
def collected_later() -> Iterator[None]:
    """Collect no garbage in the block until something in it calls `collect_rarely`: while libraries are imported."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def freeze_imported() -> None:
    """Exclude the libraries from garbage collection, without a collection: imports leave next to nothing to collect."""
    gc.freeze()


# Allocations between collections of the youngest objects, and how many of those between collections of older ones.
RARELY = (50_000, 50, 50)


def collect_rarely() -> None:
    """Freeze what the driver holds after its start, and collect seldom from then on.

    The driver holds a few small objects for every trajectory in flight. With Python's default of 700 allocations every
    collection walks them all: at 100,000 trajectories that is two thirds of the driver's time (benchmarks.scheduler).
    """
    freeze_started()
    gc.set_threshold(*RARELY)
