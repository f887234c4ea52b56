"""What a worker that does not answer is doing: Python's stacks, which a signal makes it write to its log."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import ray

from rlsys.runtime.actors import own_node, process_of
from rlsys.runtime.logs import ASK_STACKS

WRITTEN_S = 1.0  # for the stacks to be in the file
DEADLINE_S = 10.0  # for a process on the worker's node to send the signal
CURRENT = "Current thread"  # how faulthandler begins the stack of the thread that got the signal: Ray's, with the call
MAX_LINES = 12


async def stack_of(worker: Any, log: Path) -> str:
    """Return the innermost frames of what a worker does, or why they are not known; the whole is in its log.

    Args:
        worker: its handle. It must have called `rlsys.runtime.logs.log_worker`: the signal ends other processes.
        log: the file that it logs to.
    """
    try:
        async with asyncio.timeout(DEADLINE_S):
            before = log.stat().st_size
            if not await asyncio.to_thread(_send, worker):
                return "its process has not started"
            await asyncio.sleep(WRITTEN_S)
    except (TimeoutError, OSError, ray.exceptions.RayError) as error:
        return f"its stack is not known: {type(error).__name__}: {error}"
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(before)
        _, found, after = file.read().partition(CURRENT)
    if not found:
        return "it wrote no stack, as when it is stopped"
    frames = [line.strip() for line in after.splitlines()[1:] if line.startswith("  File")]
    return "\n".join(["it is here:", *(f"  {frame}" for frame in frames[:MAX_LINES]), f"all threads: {log}"])


def _send(worker: Any) -> bool:
    """Send the signal, from a process on the worker's own node; return False where there is no process yet."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found = process_of(worker)
    if found is None:  # process id 0 would be this process's own group
        return False
    node, pid = found
    if node == own_node():
        os.kill(pid, ASK_STACKS)
        return True
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(os.kill).options(num_cpus=0, max_retries=0, scheduling_strategy=place)
    ray.get(task.remote(pid, ASK_STACKS), timeout=DEADLINE_S)
    return True
