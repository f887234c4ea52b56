"""Whether an engine makes progress: told by its steps and tokens, and not by how long it takes.

A slow step is no fault: a long prompt on a busy machine takes a minute, and a kernel that is compiled too. So an engine
without progress for `LIMIT_S` is asked for its processor time. A process that is stopped does not answer; one that
waits for a lock uses none. On GPUs a kernel that hangs keeps a core busy too, so there a step has a limit of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from rlsys.errors import DeadlineError

LIMIT_S = 5.0  # without progress
# Of asking for the processor time: where many processes share few cores, even a short answer may be late.
ANSWER_S = 15.0
# Share of a core that an engine uses which computes, with room for one that shares its core with many.
BUSY_SHARE = 0.02
GPU_STEP_S = 120.0  # a step on a GPU takes milliseconds, and the compilation of a kernel some seconds


class Wait(Protocol):
    """The wait for an open call under a deadline (`rlsys.runtime.calls.Calls.result`)."""

    def __call__(self, ref: Any, *, deadline_s: float) -> Awaitable[Any]:
        """Return the call's result, or raise DeadlineError; the call goes on."""


async def fault_of(
    prove_life: Callable[[], Any], cpu_seconds: Callable[[], Any], wait: Wait, *, on_gpu: bool
) -> str | None:
    """Return what is wrong with an engine, or None once it has made progress.

    Args:
        prove_life: begins the call that returns after a step or a token.
        cpu_seconds: begins the call that returns the processor time used so far.
        wait: waits for either.
        on_gpu: whether a single step has a limit.
    """
    used: float | None = None
    proof, waited_s = prove_life(), 0.0
    while True:
        try:
            await wait(proof, deadline_s=LIMIT_S)
            return None
        except DeadlineError:
            waited_s += LIMIT_S
        before = used
        try:
            used = await wait(cpu_seconds(), deadline_s=ANSWER_S)
        except DeadlineError:
            return f"its process has not answered for {waited_s + ANSWER_S:g} s: it is stopped, or hangs"
        if before is not None and used - before < BUSY_SHARE * LIMIT_S:
            return f"it has made no step for {waited_s:g} s, and computes nothing"
        if on_gpu and waited_s >= GPU_STEP_S:
            return f"it has made no step for {waited_s:g} s"
