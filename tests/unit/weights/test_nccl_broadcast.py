"""Broadcasts over NCCL between processes: rlsys's and vLLM's halves, with a stand-in for libnccl and for CUDA."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from rlsys.config.schema import WeightsConfig
from rlsys.runtime.calls import Calls
from rlsys.weights.broadcaster import WeightBroadcaster
from tests.fakes import roles
from tests.fakes.workers import Worker


def test_smoke() -> None:
    backend = "nccl"
    workers = [Worker(roles.build_learner, backend)]
    engines = [[Worker(roles.build_engine_process, f"rlsys-{backend}", rank, 2) for rank in range(2)] for _ in range(2)]
    every = [*workers, *engines[0], *engines[1]]
    for w in every:
        w.wait_started()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    learner = roles.Learner(workers[0], "127.0.0.1", port)
    config = WeightsConfig(deadline_s=60.0, verify=True)
    class B(WeightBroadcaster):
        _bucket_bytes = roles.BUCKET_BYTES
    b = B(learner, roles.Engines(engines), Calls().gather, config, backend)

    async def work():
        try:
            await b.open()
            for v in (1, 2):
                expected = await workers[0].call(roles.train)
                print(await b.broadcast(v))
                for e in engines:
                    for r, w in enumerate(e):
                        got = await w.call(roles.held)
                        for n in expected:
                            if n.split(".")[-2]=="up":
                                assert got[n] == expected[n][2*r:2*r+2], n
                            else:
                                assert got[n] == expected[n], n
        finally:
            for w in every: w.kill()
    asyncio.run(work())
