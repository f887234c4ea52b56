"""The pool of reference workers: whether its workers are as they should be after a step."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlsys.config.algorithm_schema import RefreshConfig
from rlsys.config.compose import load_config
from rlsys.reference.pool import ReferencePool
from rlsys.reference.worker import ReferenceSetup


def pool_of(tmp_path: Path, calls: list[Any], num_parts: int = 1) -> ReferencePool:
    """A pool of one worker that follows a policy of so many parts every three steps; `calls` gets what it is asked."""

    class Remote:
        def __init__(self, name: str) -> None:
            self._name = name

        def remote(self, *args: Any) -> None:
            calls.append((self._name, *args))

    async def gather(open_calls: dict[str, Any], **_: Any) -> dict[str, Any]:
        return open_calls

    worker = SimpleNamespace(stage=Remote("stage"), blend=Remote("blend"))
    cluster: Any = SimpleNamespace(calls=SimpleNamespace(gather=gather, background=None), start=lambda *_: worker)
    setup = ReferenceSetup.from_config(load_config(["experiment=quickstart"]), str(tmp_path), 64)

    def read(number: int) -> tuple[dict[str, Any], Any]:
        return {"learner/0": number + 1 == num_parts, "learner/1": None}, f"part {number}"

    demands: Any = [SimpleNamespace(name="reference/0")]
    return ReferencePool(cluster, setup, RefreshConfig(every=3, alpha=0.6), read, demands)


def test_the_reference_is_whole_once_a_refresh_that_is_due_was_made(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, [])
    assert [pool.is_whole(step) for step in (1, 2, 3)] == [True, True, False]
    asyncio.run(pool.refresh(2))
    assert not pool.is_whole(3)
    asyncio.run(pool.refresh(3))
    assert [pool.is_whole(step) for step in (3, 4, 6)] == [True, True, False]


def test_the_policy_arrives_in_parts_and_moves_the_reference_once(tmp_path: Path) -> None:
    calls: list[Any] = []
    asyncio.run(pool_of(tmp_path, calls, num_parts=3).refresh(3))
    assert calls == [("stage", "part 0"), ("stage", "part 1"), ("stage", "part 2"), ("blend", 0.6)]
