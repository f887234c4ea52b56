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


def test_the_reference_is_whole_once_a_refresh_that_is_due_was_made(tmp_path: Path) -> None:
    async def gather(*_: Any, **__: Any) -> None:
        return None

    cluster: Any = SimpleNamespace(calls=SimpleNamespace(gather=gather, background=None))
    setup = ReferenceSetup.from_config(load_config(["experiment=quickstart"]), str(tmp_path))
    pool = ReferencePool(cluster, setup, RefreshConfig(every=3), lambda: {"learner/0": None}, [])
    assert [pool.is_whole(step) for step in (1, 2, 3)] == [True, True, False]
    asyncio.run(pool.refresh(2))
    assert not pool.is_whole(3)
    asyncio.run(pool.refresh(3))
    assert [pool.is_whole(step) for step in (3, 4, 6)] == [True, True, False]
