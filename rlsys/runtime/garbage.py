"""Keeping Python's garbage collector out of the steps."""

from __future__ import annotations

import atexit
import gc


def freeze_started() -> None:
    """Exclude every object that exists now from garbage collection; a worker calls this once it has started.

    What a worker holds by then, libraries and models, stays for good. Otherwise each full collection would walk these
    hundreds of thousands of objects again: 0.3 s every few steps, in the middle of a rollout.
    """
    gc.collect()
    gc.freeze()
    # What is frozen is not freed at the interpreter's end, and libraries that count their objects then report leaks
    # (nanobind, in triton's bindings).
    atexit.unregister(gc.unfreeze)  # registered once, however often a process freezes
    atexit.register(gc.unfreeze)


# Allocations between collections of the youngest objects, and how many of those between collections of older ones.
RARELY = (50_000, 50, 50)


def collect_rarely() -> None:
    """Freeze what the driver holds after its start, and collect seldom from then on.

    The driver holds a few small objects for every trajectory in flight. With Python's default of 700 allocations every
    collection walks them all: at 100,000 trajectories that is two thirds of the driver's time (benchmarks.scheduler).
    """
    freeze_started()
    gc.set_threshold(*RARELY)
