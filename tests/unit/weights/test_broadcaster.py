"""One control call to each worker a broadcast, whichever the backend."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rlsys.config.schema import WeightsConfig
from rlsys.errors import WeightMismatchError
from rlsys.weights.broadcaster import OpenCalls, WeightBroadcaster
from rlsys.weights.receipt import Receipt, Received


class Learner:
    """A sending side of two ranks that records what it is asked."""

    def __init__(self) -> None:
        self.opened: tuple[Any, ...] = ()
        self.sums = [7]

    async def address(self) -> tuple[str, int]:
        return "10.0.0.1", 29500

    def begin_open_weights(self, backend: str, host: str, port: int, world_size: int) -> OpenCalls:
        self.opened = (backend, host, port, world_size)
        return {"learner/0": "open", "learner/1": "open"}

    async def weight_update_info(self, backend: str) -> tuple[Mapping[str, Any], Sequence[int]]:
        sums = self.sums if backend == "ipc" else ()
        return {"names": ["weight"], "dtype_names": ["uint8"], "shapes": [[2]], "units": [0], "for": backend}, sums

    def begin_send_weights(self) -> OpenCalls:
        return {"learner/0": "send", "learner/1": "send"}


class Engines:
    """A receiving side of two engines with three workers each."""

    num_workers = 2
    workers_per_engine = 3

    def __init__(self) -> None:
        self.infos: list[dict[str, Any]] = []
        self.received: tuple[Any, ...] = ()

    def begin_join_weights(self, init_infos: list[dict[str, Any]]) -> OpenCalls:
        self.infos = init_infos
        return {"rollout/0": "join", "rollout/1": "join"}

    def begin_receive_weights(self, update_info: Mapping[str, Any], policy_version: int) -> OpenCalls:
        self.received = (dict(update_info), policy_version)
        return {"rollout/0": "receive", "rollout/1": "receive"}


class Parts:
    """A broadcaster between two recording sides, and the waits it asked for."""

    def __init__(self, backend: str, is_verified: bool = True) -> None:
        self.learner, self.engines = Learner(), Engines()
        self.waits: list[tuple[OpenCalls, str, float]] = []
        config = WeightsConfig(bucket_mib=2, deadline_s=7.0, verify=is_verified)
        self.broadcaster = WeightBroadcaster(self.learner, self.engines, self._wait, config, backend)

    async def _wait(self, calls: OpenCalls, *, what: str, deadline_s: float) -> OpenCalls:
        self.waits.append((dict(calls), what, deadline_s))
        answers = {
            "learner/0": self.learner.sums,
            "learner/1": [],
            "rollout/0": Received({"stalled_s": 0.1, "reload_s": 0.5}, [Receipt([7], [], [], 1.0)]),
            "rollout/1": Received({"stalled_s": 0.2, "reload_s": 0.4}, [Receipt([7], [], [], 0.5)]),
        }
        return {name: answers[name] for name in calls}


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_opening_gives_every_worker_its_place(backend: str) -> None:
    parts = Parts(backend)
    asyncio.run(parts.broadcaster.open())
    assert parts.learner.opened == (backend, "10.0.0.1", 29500, 7)  # the sender, and 2 * 3 engine workers
    shared: dict[str, Any] = {"master_address": "10.0.0.1", "master_port": 29500, "world_size": 7}
    shared |= {"bucket_bytes": 2 * 1024 * 1024, "deadline_s": 7.0, "is_checked": True}
    assert parts.engines.infos == [{**shared, "rank_offset": 1}, {**shared, "rank_offset": 4}]
    calls = {"learner/0": "open", "learner/1": "open", "rollout/0": "join", "rollout/1": "join"}
    assert parts.waits == [(calls, "opening the weight channel", 7.0)]  # both sides under one wait


def test_ipc_needs_no_place() -> None:
    parts = Parts("ipc")
    asyncio.run(parts.broadcaster.open())
    assert parts.engines.infos == [{"bucket_bytes": 2 * 1024 * 1024, "is_checked": True}] * 2


@pytest.mark.parametrize(("backend", "senders"), [("gloo", 2), ("nccl", 2), ("ipc", 0)])
def test_a_broadcast_is_one_call_to_each_worker(backend: str, senders: int) -> None:
    parts = Parts(backend)
    metrics = asyncio.run(parts.broadcaster.broadcast(5))
    # The slowest engine's times, and the engine that shows least of what it loaded.
    assert metrics == {"weights/stalled_s": 0.2, "weights/reload_s": 0.5, "weights/compared_fraction": 0.5}
    assert (parts.engines.received[0]["for"], parts.engines.received[1]) == (backend, 5)
    (calls, what, deadline_s) = parts.waits[0]
    assert len(parts.waits) == 1
    assert sorted(calls) == [*["learner/0", "learner/1"][:senders], "rollout/0", "rollout/1"]
    assert (what, deadline_s) == ("broadcast of policy version 5", 7.0)


@pytest.mark.parametrize("backend", ["gloo", "nccl", "ipc"])
@pytest.mark.parametrize("is_verified", [True, False])
def test_the_sums_of_both_sides_are_compared(backend: str, is_verified: bool) -> None:
    parts = Parts(backend, is_verified)
    parts.learner.sums = [8]
    if is_verified:
        with pytest.raises(WeightMismatchError, match=r"version 5 did not reach rollout/0 .*bytes of 1 of 1 .*weight"):
            asyncio.run(parts.broadcaster.broadcast(5))
    else:
        asyncio.run(parts.broadcaster.broadcast(5))
