"""Broadcasts over CUDA IPC between processes: rlsys's, vLLM's and torch's code, with stand-ins for CUDA alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rlsys.errors import ConfigError, DeadlineError, WorkerDiedError, WorkerError
from rlsys.runtime import calls
from tests.fakes import memory, streams
from tests.fakes.group import DEADLINE_S, Group


@pytest.mark.parametrize("verify", [True, False])
def test_the_engine_holds_what_the_learner_exported(verify: bool) -> None:
    """Three times: parameters larger than a bucket, of two dtypes, and an empty bucket.

    Kernels are still to run when the handles are made; and the next version's copies take the memory of the last one's.
    """

    async def scenario() -> None:
        await group.broadcaster.open()
        num_blocks = []
        for version in (1, 2, 3):
            metrics = await group.broadcast(version)
            assert metrics.get("weights/compared_fraction") == (1.0 if verify else None)
            num_blocks.append(await group.learner.call(count_blocks))
        assert num_blocks[1:] == num_blocks[:-1]

    with Group("ipc", verify=verify) as group:
        group.run(scenario())


def test_an_engine_on_another_gpu_is_refused_by_both_gpus_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "SETTLE_S", 0.1)

    async def scenario() -> None:
        await group.broadcaster.open()
        await group.engines[0][0].call(move_to, "GPU-1")
        words = "rollout/0 failed: RuntimeError: the learner's memory is on GPU GPU-0, the engine on GPU-1"
        with pytest.raises(WorkerError, match=words):
            await group.broadcaster.broadcast(1)

    with Group("ipc") as group:
        group.run(scenario())


def test_a_learner_without_room_beside_the_engine_is_refused_when_the_channel_opens() -> None:
    async def scenario() -> None:
        await group.learner.call(fill_gpu)
        with pytest.raises(ConfigError, match=r"beside the engine 0.0 GiB are free, but training needs"):
            await group.broadcaster.open()

    with Group("ipc") as group:
        group.run(scenario())


def test_a_learner_that_dies_after_the_export_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine finds no memory where the learner's was and fails; the learner's death is the cause."""
    monkeypatch.setattr(calls, "SETTLE_S", 0.1)

    async def scenario() -> None:
        await group.broadcaster.open()
        await group.broadcast(1)
        export = group.sender.weight_update_info

        async def export_and_die(backend: str) -> tuple[Mapping[str, Any], Sequence[int]]:
            exported = await export(backend)
            group.learner.kill()
            return exported

        monkeypatch.setattr(group.sender, "weight_update_info", export_and_die)
        with pytest.raises(WorkerDiedError, match=r"broadcast of policy version 2: .*learner/0 is gone"):
            await group.broadcaster.broadcast(2)

    with Group("ipc") as group:
        group.run(scenario())


def test_an_engine_that_dies_or_hangs_is_named() -> None:
    async def scenario() -> None:
        await group.broadcaster.open()
        await group.engines[0][0].call(hang)
        group.set_deadline(0.3)
        with pytest.raises(DeadlineError, match=r"version 1: no answer within 0.3 s from rollout/0"):
            await group.broadcaster.broadcast(1)
        group.set_deadline(DEADLINE_S)
        group.engines[0][0].kill()
        with pytest.raises(WorkerDiedError, match="broadcast of policy version 2: rollout/0 is gone"):
            await group.broadcaster.broadcast(2)

    with Group("ipc") as group:
        group.run(scenario())


# What follows runs in the workers.


def count_blocks(learner: Any) -> int:
    return memory.GPU.num_blocks


def move_to(process: Any, uuid: str) -> None:
    streams.UUID = uuid


def fill_gpu(learner: Any) -> None:
    streams.FREE_BYTES = 1


def hang(process: Any) -> None:
    process.update_weights = lambda info: time.sleep(3600.0)
