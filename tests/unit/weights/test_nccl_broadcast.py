"""Broadcasts over NCCL between processes: rlsys's and vLLM's halves, with stand-ins for libnccl and CUDA's streams."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
import ray

from rlsys.errors import WorkerDiedError, WorkerError
from rlsys.runtime import calls
from rlsys.weights.sender import WeightSender
from tests.fakes import nccl, roles, streams
from tests.fakes.group import Group, free_port
from tests.fakes.workers import Worker, failed_calls

SHORT_S = 0.3  # for waits that must end at their deadline
FIRST = 1 + len(roles.BUCKETS)  # the second broadcast's first kernel, after vLLM's warm-up and the first broadcast
sent_sizes: list[int] = []


def test_every_process_of_every_engine_holds_every_bucket() -> None:
    """Two engines of two processes each, twice: parameters larger than a bucket, of two dtypes, and an empty bucket."""

    async def scenario() -> None:
        await asyncio.gather(*(worker.call(note_sizes) for worker in group.workers))
        await group.broadcaster.open()
        for version in (1, 2):
            metrics = await group.broadcast(version)
            # Sums over divided parameters cannot be compared; those of both layers are.
            assert metrics["weights/compared_fraction"] == pytest.approx(640 / 834)
        for worker in group.workers:
            assert await worker.call(noted_sizes) == [0, *roles.BUCKETS, *roles.BUCKETS]
            assert await worker.call(computes_on_the_default_stream)
        for process in group.workers[1:]:
            await process.call(leave)
            assert await process.call(channel_of) is None

    with Group("nccl", num_engines=2, num_ranks=2) as group:
        group.run(scenario())


def test_without_sums_every_bucket_arrives_too() -> None:
    """Nothing waits for the sums' values, so only the channel itself keeps the order."""

    async def scenario() -> None:
        await group.broadcaster.open()
        for version in (1, 2, 3):
            assert "weights/compared_fraction" not in await group.broadcast(version)

    with Group("nccl", verify=False) as group:
        group.run(scenario())


@pytest.mark.parametrize(("died", "name"), [(0, "learner/0"), (2, "rollout/0")])
def test_a_death_in_the_middle_is_named_and_nobody_waits_forever(died: int, name: str) -> None:
    """The learner, or one of an engine's two processes, dies in the second broadcast."""

    async def scenario() -> None:
        await group.broadcaster.open()
        await group.broadcast(1)
        for worker in group.workers:
            await worker.call(wait_less_on_signal)
        await group.workers[died].call(die_at, FIRST + 2)
        with pytest.raises(WorkerDiedError, match=f"broadcast of policy version 2: {name} is gone"):
            await group.broadcast(2)
        for rank, worker in enumerate(group.workers):
            if rank != died:
                await check_gave_up(worker, rank)

    with Group("nccl", num_engines=2, num_ranks=2) as group:
        group.run(scenario())


def test_an_engine_that_cannot_load_is_named_and_nobody_waits_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "SETTLE_S", 0.1)

    async def scenario() -> None:
        await group.broadcaster.open()
        await group.broadcast(1)
        for worker in group.workers:
            await worker.call(wait_less_on_signal)
        await group.engines[1][0].call(break_at, "layers.0.gate.weight")
        failed = "version 2: rollout/1 failed: ValueError: layers.0.gate.weight does not fit"
        with pytest.raises(WorkerError, match=failed):
            await group.broadcast(2)
        for rank in (0, 1):
            await check_gave_up(group.workers[rank], rank)
        # What timed out is not used again: it would silently do nothing.
        with pytest.raises(ray.exceptions.RayTaskError, match="the weight channel is not open, or was closed"):
            await group.learner.call(roles.send_weights)

    with Group("nccl", num_engines=2) as group:
        group.run(scenario())


async def check_gave_up(worker: Worker, rank: int) -> None:
    """Let a rank's deadline pass: it must end its call with an error."""
    os.kill(worker.process.pid, signal.SIGUSR1)
    errors = await worker.call(failed_calls)
    assert f"rank {rank} of the weight group waited {SHORT_S:g} s for bucket" in errors[-1]
    assert "another rank has ended, has failed, or does not take part" in errors[-1]


def test_a_peer_that_never_joins_is_an_error_at_the_deadline() -> None:
    async def scenario() -> None:
        alone = (group.learner.call(open_alone, free_port()), group.engines[0][0].call(join_alone, free_port()))
        for error in await asyncio.gather(*alone):
            assert f"waited {SHORT_S:g} s for all 2 ranks to join" in error

    with Group("nccl") as group:
        group.run(scenario())


@pytest.mark.parametrize("role", ["learner/0", "rollout/0"])
def test_a_disabled_communicator_is_refused(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "SETTLE_S", 0.1)

    async def scenario() -> None:
        await (group.learner if role == "learner/0" else group.engines[0][0]).call(disable)
        refused = f"opening the weight channel: {role} failed: RuntimeError: the NCCL communicator is disabled"
        with pytest.raises(WorkerError, match=refused):
            await group.broadcaster.open()

    with Group("nccl") as group:
        group.run(scenario())


@pytest.mark.parametrize("packed", [False, True])
def test_vllm_s_own_halves_agree_over_the_stand_in(packed: bool) -> None:
    """The stand-in keeps the contract that vLLM's trainer and worker were written for."""

    async def scenario() -> None:
        port = free_port()
        joining = engine.call(join_vllm, port, packed)
        await asyncio.gather(trainer.call(open_vllm, port, packed), joining)
        info = {key: value for key, value in (await trainer.call(roles.update_info)).items() if key != "units"}
        info["dtype_names"] = ["bfloat16"] * len(roles.SHAPES)
        await asyncio.gather(trainer.call(send_vllm), engine.call(receive_vllm, info))
        assert await engine.call(roles.held) == await trainer.call(sent_by_vllm)

    trainer, engine = Worker(roles.build_learner, "nccl"), Worker(roles.build_engine_process, "nccl", 0, 1)
    try:
        trainer.wait_started()
        engine.wait_started()
        asyncio.run(scenario())
    finally:
        trainer.kill()
        engine.kill()


# What follows runs in the workers.


def channel_of(held: Any) -> Any:
    return held._sender._channel if hasattr(held, "_sender") else held.weight_transfer_engine._channel


def leave(process: Any) -> None:
    process.shutdown_weight_transfer_engine()


def note_sizes(held: Any) -> None:
    nccl.on_broadcast.append(lambda number, num_bytes: sent_sizes.append(num_bytes))


def noted_sizes(held: Any) -> list[int]:
    return sent_sizes


def computes_on_the_default_stream(held: Any) -> bool:
    return streams.current_stream() is streams.DEFAULT


def wait_less_on_signal(held: Any) -> None:
    """Shorten the deadline at SIGUSR1: until then every rank has as long as a slow machine needs."""
    signal.signal(signal.SIGUSR1, lambda *_: setattr(channel_of(held), "_deadline_s", SHORT_S))


def die_at(held: Any, start: int) -> None:
    nccl.on_broadcast.append(lambda number, num_bytes: os._exit(1) if number == start else None)


def break_at(process: Any, name: str) -> None:
    process.weight_transfer_engine.model.broken = name


def open_alone(learner: Any, port: int) -> str:
    sender: WeightSender = learner._sender
    with pytest.raises(RuntimeError) as caught:
        sender.open("nccl", "127.0.0.1", port, 2, SHORT_S)
    return str(caught.value)


def join_alone(process: Any, port: int) -> str:
    info = {"bucket_bytes": 1, "is_checked": True, "master_address": "127.0.0.1", "master_port": port}
    with pytest.raises(RuntimeError) as caught:
        process.init_weight_transfer_engine({**info, "rank_offset": 1, "world_size": 2, "deadline_s": SHORT_S})
    return str(caught.value)


def disable(held: Any) -> None:
    os.environ["VLLM_DISABLE_PYNCCL"] = "1"


class Client:
    """vLLM's trainer calls engines through this; here the test itself calls them."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def open_vllm(learner: Any, port: int, packed: bool) -> None:
    from vllm.distributed.weight_transfer.base import ModuleSource
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

    source = ModuleSource(learner._engine.module.hf.bfloat16())
    streams.synchronize_all()
    info = NCCLTrainerInitInfo("127.0.0.1", port, 2, packed=packed, packed_buffer_size_bytes=roles.BUCKET_BYTES, rank=0)
    learner.trainer = NCCLTrainerWeightTransferEngine.trainer_init(info, client=Client(), source=source)


def join_vllm(process: Any, port: int, packed: bool) -> None:
    info = {"master_address": "127.0.0.1", "master_port": port, "rank_offset": 1, "world_size": 2, "packed": packed}
    process.init_weight_transfer_engine({**info, "packed_buffer_size_bytes": roles.BUCKET_BYTES})


def send_vllm(learner: Any) -> None:
    learner.trainer.send_weights()


def sent_by_vllm(learner: Any) -> dict[str, Any]:
    return roles.plain(dict(learner.trainer.source))


def receive_vllm(process: Any, info: dict[str, Any]) -> None:
    process.start_weight_update()
    process.update_weights(info)
    process.finish_weight_update()
