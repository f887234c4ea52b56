"""Versions of an adapter while requests run under several of them: cases that a real engine gives only by luck."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlsys.errors import WorkerError
from rlsys.rollout.served_adapters import MEMORY, Adapters, AdapterSlots, make_folder, remove_orphans
from rlsys.weights.packed_adapter import PackedAdapter, pack_adapter, tensor_sums

DESCRIPTION = {"r": 2, "lora_alpha": 4, "use_rslora": False}


def packed(value: float) -> PackedAdapter:
    tensors = {"a.lora_A.weight": torch.full((2, 3), value), "a.lora_B.weight": torch.full((3, 2), value)}
    return pack_adapter(tensors, DESCRIPTION)


class Engine:
    """In vLLM's place: remembers what is loaded; reads the files it is pointed to."""

    def __init__(self) -> None:
        self.loaded: dict[int, dict[str, torch.Tensor]] = {}
        self.loading = asyncio.Event()
        self.loading.set()

    async def add_lora(self, request: Any) -> None:
        from safetensors.torch import load_file

        await self.loading.wait()
        self.loaded[request.lora_int_id] = load_file(Path(request.lora_path) / "adapter_model.safetensors")

    async def remove_lora(self, adapter_id: int) -> None:
        await self.loading.wait()
        del self.loaded[adapter_id]

    async def collective_rpc(self, method: str, adapter_id: int) -> list[Any]:
        assert method == "adapter_sums"
        return [tensor_sums(self.loaded[adapter_id], DESCRIPTION)]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def adapters(engine: Engine) -> Iterator[Adapters]:
    made = Adapters(engine, "rollout-0")
    yield made
    made.close()
    assert made._folder is None or not made._folder.exists()


def files(adapters: Adapters) -> list[str]:
    assert adapters._folder is not None
    return sorted(folder.name for folder in adapters._folder.iterdir())


def test_a_cancelled_request_leaves_neither_adapter_nor_files(engine: Engine, adapters: Adapters) -> None:
    async def scenario() -> None:
        await adapters.add(packed(1.0), 0)
        version, _ = adapters.begin()
        await adapters.add(packed(2.0), 1)
        engine.loading.clear()
        ending = asyncio.create_task(adapters.end(version))
        await asyncio.sleep(0)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        engine.loading.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert files(adapters) == ["version-1"]
        assert list(engine.loaded) == [2]

    asyncio.run(scenario())


def test_a_version_that_comes_again_changes_nothing(engine: Engine, adapters: Adapters) -> None:
    """As when another engine joins, and the policy is broadcast to all."""

    async def scenario() -> None:
        await adapters.add(packed(1.0), 3)
        running, request = adapters.begin()
        await adapters.add(packed(1.0), 3)
        assert adapters.begin() == (running, request)
        assert list(engine.loaded) == [request.lora_int_id]
        for _ in range(2):
            await adapters.end(running)
        await adapters.add(packed(2.0), 4)
        assert files(adapters) == ["version-4"]

    asyncio.run(scenario())


def test_a_version_stays_until_its_last_request_has_ended(engine: Engine, adapters: Adapters) -> None:
    async def scenario() -> None:
        await adapters.add(packed(1.0), 0)
        requests = [adapters.begin() for _ in range(2)]
        await adapters.add(packed(2.0), 1)
        newer = adapters.begin()
        assert [version for version, _ in requests] == [0, 0]
        assert newer[0] == 1
        assert newer[1].lora_name != requests[0][1].lora_name
        assert (len(engine.loaded), files(adapters)) == (2, ["version-0", "version-1"])
        await adapters.end(0)
        assert len(engine.loaded) == 2
        await adapters.end(0)  # the last one
        assert (len(engine.loaded), files(adapters)) == (1, ["version-1"])
        await adapters.end(1)
        assert len(engine.loaded) == 1  # it is served, though nobody uses it just now

    asyncio.run(scenario())


def test_while_a_version_loads_requests_begin_under_the_one_before(engine: Engine, adapters: Adapters) -> None:
    async def scenario() -> None:
        await adapters.add(packed(1.0), 0)
        engine.loading.clear()
        loading = asyncio.create_task(adapters.add(packed(2.0), 1))
        await asyncio.sleep(0)
        version, _ = adapters.begin()
        assert version == 0
        engine.loading.set()
        await loading
        assert adapters.begin()[0] == 1
        assert len(engine.loaded) == 2
        await adapters.end(0)
        assert len(engine.loaded) == 1

    asyncio.run(scenario())


def test_what_does_not_arrive_whole_is_never_served(engine: Engine, adapters: Adapters) -> None:
    async def scenario() -> None:
        await adapters.add(packed(1.0), 0)
        real = engine.collective_rpc

        async def less(method: str, args: tuple[int]) -> list[Any]:
            (sums,) = await real(method, args)
            return [{**sums, "B": (0, 0.0)}]

        engine.collective_rpc = less  # type: ignore[method-assign]
        with pytest.raises(WorkerError, match="rollout-0, policy version 1: the engine holds 0 matrices B"):
            await adapters.add(packed(2.0), 1)
        assert adapters.begin()[0] == 0
        assert files(adapters) == ["version-0"]

    asyncio.run(scenario())


@pytest.mark.parametrize(("rank", "reserved"), [(1, 1), (2, 8), (8, 8), (9, 16), (200, 256), (512, 512)])
def test_an_engine_reserves_room_for_the_next_rank_that_it_knows(rank: int, reserved: int) -> None:
    arguments = AdapterSlots(rank, 3, ("q_proj",)).arguments()
    assert arguments["lora_target_modules"] == ["q_proj"]
    assert (arguments["max_lora_rank"], arguments["max_loras"], arguments["max_cpu_loras"]) == (reserved, 3, 4)


def test_adapters_of_killed_workers_are_removed() -> None:
    alive = make_folder(1000)
    gone = alive.with_name(alive.name.replace(str(os.getpid()), str(2**22 + 1)))
    elsewhere = gone.with_name(gone.name.replace(socket.gethostname(), "another-host"))
    assert len({alive, gone, elsewhere}) == 3
    for folder in (gone, elsewhere):
        folder.mkdir()
    remove_orphans()
    assert alive.is_dir()
    assert not gone.exists()
    assert elsewhere.is_dir()  # nobody here knows whether that process lives
    for folder in (alive, elsewhere):
        folder.rmdir()
    other = make_folder(2**60)  # more than there is room for
    assert MEMORY not in other.parents
    other.rmdir()
