"""One control call to each worker a broadcast, whichever the backend."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from rlsys.config.schema import WeightsConfig
from rlsys.errors import DeadlineError, WeightMismatchError, WorkerDiedError, WorkerError
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

    workers_per_engine = 3

    def __init__(self) -> None:
        self.names = ["rollout/0", "rollout/1"]
        self.membership = 0
        self.infos: list[dict[str, Any]] = []
        self.received: tuple[Any, ...] = ()

    @property
    def num_workers(self) -> int:
        return len(self.names)

    def report(self, error: WorkerDiedError) -> None:
        if error.worker in self.names:
            self.lose(error.worker)

    def lose(self, name: str) -> None:
        self.names.remove(name)
        self.membership += 1

    def begin_join_weights(self, init_infos: list[dict[str, Any]]) -> OpenCalls:
        self.infos = init_infos
        assert len(init_infos) == len(self.names)
        return dict.fromkeys(self.names, "join")

    def begin_receive_weights(self, update_info: Mapping[str, Any], policy_version: int) -> OpenCalls:
        self.received = (dict(update_info), policy_version)
        return dict.fromkeys(self.names, "receive")


class Parts:
    """A broadcaster between two recording sides, and the waits it asked for."""

    def __init__(self, backend: str, is_verified: bool = True) -> None:
        self.learner, self.engines = Learner(), Engines()
        self.waits: list[tuple[OpenCalls, str, float]] = []
        self.settled: list[OpenCalls] = []
        self.failures: list[Callable[[], Exception]] = []  # of the next waits
        config = WeightsConfig(bucket_mib=2, deadline_s=7.0, verify=is_verified)
        self.broadcaster = WeightBroadcaster(self.learner, self.engines, self, config, backend)

    async def gather(self, calls: OpenCalls, *, what: str, deadline_s: float) -> OpenCalls:
        self.waits.append((dict(calls), what, deadline_s))
        if self.failures:
            raise self.failures.pop(0)()
        answers = {
            "learner/0": self.learner.sums,
            "learner/1": [],
            "rollout/0": Received({"stalled_s": 0.1, "reload_s": 0.5}, [Receipt([7], [], [], 1.0)]),
            "rollout/1": Received({"stalled_s": 0.2, "reload_s": 0.4}, [Receipt([7], [], [], 0.5)]),
        }
        return {name: answers[name] for name in calls}

    async def settle(self, calls: OpenCalls, *, what: str, deadline_s: float) -> None:
        self.settled.append(dict(calls))


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
    asyncio.run(parts.broadcaster.open())
    parts.waits.clear()
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


def died(name: str) -> Exception:
    return WorkerDiedError(f"{name} is gone", name)


def broken_while_another_dies(parts: Parts) -> Exception:
    """A peer notices first; that the engine died is known from elsewhere, as from its requests."""
    parts.engines.lose("rollout/0")
    return WorkerError("learner/0 failed: connection closed by peer")


@pytest.mark.parametrize("how", ["its death is reported", "a peer fails", "no answer in time"])
def test_a_broadcast_that_loses_an_engine_is_made_again_among_those_that_are_left(how: str) -> None:
    parts = Parts("gloo")
    asyncio.run(parts.broadcaster.open())

    def late() -> Exception:
        parts.engines.lose("rollout/0")
        return DeadlineError("no answer within 7 s")

    failure = {
        "its death is reported": lambda: died("rollout/0"),
        "a peer fails": lambda: broken_while_another_dies(parts),
        "no answer in time": late,
    }[how]
    parts.waits.clear()
    parts.failures = [failure]
    metrics = asyncio.run(parts.broadcaster.broadcast(5))
    assert metrics["weights/reload_s"] == 0.4  # of the engine that is left
    assert [sorted(calls) for calls, *_ in parts.waits] == [
        ["learner/0", "learner/1", "rollout/0", "rollout/1"],
        ["learner/0", "learner/1", "rollout/1"],  # opened again
        ["learner/0", "learner/1", "rollout/1"],
    ]
    assert parts.learner.opened == ("gloo", "10.0.0.1", 29500, 4)  # the sender, and 3 engine workers
    assert [info["rank_offset"] for info in parts.engines.infos] == [1]
    # Nothing is begun again before both sides have left the broadcast that failed.
    assert [sorted(calls) for calls in parts.settled] == [["learner/0", "learner/1", "rollout/0", "rollout/1"]]


def test_an_engine_may_also_be_lost_while_the_others_join_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[tuple[str, int, int]] = []
    parts = Parts("gloo")
    monkeypatch.setattr(
        "rlsys.weights.broadcaster.abandon", lambda *where: given_up.append((*where, len(parts.settled)))
    )
    asyncio.run(parts.broadcaster.open())
    parts.engines.lose("rollout/0")
    parts.engines.names.append("rollout/2")
    parts.failures = [lambda: died("rollout/2")]
    asyncio.run(parts.broadcaster.broadcast(5))
    assert parts.engines.names == ["rollout/1"]
    assert parts.learner.opened[-1] == 4
    assert given_up == [("10.0.0.1", 29500, 0)]  # before it is waited for those that wait for the lost one
    assert len(parts.settled) == 1


def test_without_an_engine_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsys.weights.gloo.ABANDON_DEADLINE_S", 0.1)  # nobody has opened the meeting
    parts = Parts("gloo")
    asyncio.run(parts.broadcaster.open())
    parts.failures = [lambda: died("rollout/0"), lambda: died("rollout/1")]
    assert asyncio.run(parts.broadcaster.broadcast(5)) == {}


@pytest.mark.parametrize("error", [died("learner/1"), WorkerError("rollout/0 could not load it")])
def test_what_no_lost_engine_explains_is_raised(error: Exception) -> None:
    parts = Parts("gloo")
    asyncio.run(parts.broadcaster.open())
    parts.waits.clear()
    parts.failures = [lambda: error]
    with pytest.raises(type(error)) as raised:
        asyncio.run(parts.broadcaster.broadcast(5))
    assert raised.value is error
    assert len(parts.waits) == 1
