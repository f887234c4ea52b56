"""The learner's side of a broadcast: gather, pack, send. Every rank calls; rank 0 holds the channel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from rlsys.models.adapters import adapter_parameters, wires
from rlsys.weights.gloo import GlooChannel
from rlsys.weights.manifest import Entry, Manifest, buckets, pack, to_update_info, total_bytes, unpack

PackedBuckets = Iterator[tuple[Sequence[Entry], torch.Tensor]]


class Channel(Protocol):
    """What rank 0 sends packed buckets through."""

    def rooms(self, sizes: Sequence[int]) -> Sequence[torch.Tensor | None]:
        """Where each bucket of [size] bytes is to be packed; None for memory of its own."""
        ...

    def send(self, packed: PackedBuckets) -> None: ...


class WeightSender:
    """Sends a module's parameters, in order, cast to the engines' dtype; adapters as part of what they adapt.

    Args:
        module: the Hugging Face model inside the learner's engine; the wire names are its parameters'.
        dtype: what the engines hold.
        rank: this learner rank; only rank 0 sends, all ranks gather (ZeRO-3 shards live everywhere).
        bucket_bytes: size of one packed transfer.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, rank: int, bucket_bytes: int) -> None:
        self._module = module
        self._dtype = dtype
        self._rank = rank
        self._bucket_bytes = bucket_bytes
        self._channel: Channel | None = None
        self._exported: list[torch.Tensor] = []

    def manifest(self) -> Manifest:
        """Every parameter that travels."""
        return [Entry(wire.name, self._dtype, wire.shape) for wire in wires(self._module)]

    def update_info(self) -> dict[str, Any]:
        """The manifest in the form the engines take."""
        return to_update_info(self.manifest())

    def open(
        self, backend: str, host: str, port: int, world_size: int, deadline_s: float, share_memory: bool = True
    ) -> None:
        """Join the weight group as its sender. Blocks until every engine has joined, or the deadline."""
        if self._rank != 0 or backend == "ipc":
            return
        if backend == "gloo":
            shared = total_bytes(self.manifest()) if share_memory else 0
            self._channel = GlooChannel(host, port, 0, world_size, deadline_s, shared)
        else:
            self._channel = NcclChannel(host, port, world_size, self._bucket_bytes)

    def send(self) -> None:
        """Gather and broadcast bucket by bucket, the same fixed order on every rank."""
        packed = self._packed(self._bucket_bytes, self._channel)
        if self._channel is not None:
            self._channel.send(packed)
        for _ in packed:  # the other ranks only take part in the gathering
            pass

    def export_ipc(self) -> dict[str, Any]:
        """CUDA IPC handles to owned copies of the parameters, for engines on the same GPU; kept until the next."""
        from torch.multiprocessing.reductions import reduce_tensor

        self._exported = []
        handles = []
        for bucket, buffer in self._packed(0):
            for entry, part in zip(bucket, unpack(buffer, bucket), strict=True):
                uuid = str(torch.cuda.get_device_properties(part[1].device).uuid)
                handles.append({uuid: reduce_tensor(part[1])[1]})
                self._exported.append(part[1])
                assert part[0] == entry.name
        return {**self.update_info(), "ipc_handles": handles}

    def _packed(self, max_bytes: int, channel: Channel | None = None) -> PackedBuckets:
        """Packed copies of every bucket on rank 0, where the channel wants them; nothing on the other ranks. All must
        exhaust it.

        The copy is made inside the gathering context: what it yields is a view whose storage is given back (and soon
        holds something else) when the context closes.
        """
        by_name = {wire.name: wire for wire in wires(self._module)}
        cut = buckets(self.manifest(), max_bytes)
        rooms = [None] * len(cut) if channel is None else channel.rooms([total_bytes(bucket) for bucket in cut])
        for bucket, room in zip(cut, rooms, strict=True):
            chosen = [by_name[entry.name] for entry in bucket]
            with gathered([source for wire in chosen for source in wire.sources]):
                device = None if room is None else room.device
                sent = [wire.read().to(device, self._dtype) for wire in chosen] if self._rank == 0 else []
                packed = pack(sent, room) if sent else None
            if packed is not None:
                yield bucket, packed


class NcclChannel:
    """Rank 0 of the group that vLLM's `nccl` engine opens; packs and double-buffers as that engine expects."""

    NUM_BUFFERS = 2

    def __init__(self, host: str, port: int, world_size: int, bucket_bytes: int) -> None:
        from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

        self._bucket_bytes = bucket_bytes
        device = torch.accelerator.current_device_index()
        self._communicator = stateless_init_process_group(host, port, 0, world_size, device)
        if self._communicator.disabled:
            raise RuntimeError(
                "the NCCL communicator is disabled (libnccl missing, or VLLM_DISABLE_PYNCCL set): broadcasts would do "
                "nothing, silently"
            )

    def rooms(self, sizes: Sequence[int]) -> list[None]:
        """Its own buffers come between; what it is given need not stay."""
        return [None] * len(sizes)

    def send(self, packed: PackedBuckets) -> None:
        """Broadcast every packed bucket; returns when the GPU has sent the last one."""
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        packed_nccl_broadcast_producer(
            iterator=(named for bucket, buffer in packed for named in unpack(buffer, bucket)),
            group=self._communicator,
            src=0,
            post_iter_func=lambda named: named[1],
            buffer_size_bytes=self._bucket_bytes,
            num_buffers=self.NUM_BUFFERS,
        )


def gathered(parameters: Sequence[nn.Parameter]) -> Any:
    """ZeRO-3 parameters gathered for reading; nothing to do for whole ones."""
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded)


def full_state(module: nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """Whole parameters on the CPU at rank 0, with their adapters' part; every rank must call."""
    return dict(_full_parameters(module, rank))


def _full_parameters(module: nn.Module, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    for wire in wires(module):
        with gathered(wire.sources):
            if rank == 0:
                yield wire.name, wire.read().cpu().clone()


def adapter_state(module: nn.Module, rank: int, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU at rank 0, in `dtype` where one is given; every rank must call."""
    parameters = adapter_parameters(module)
    with gathered(list(parameters.values())):
        if rank != 0:
            return {}
        return {name: p.detach().to("cpu", dtype or p.dtype, copy=True) for name, p in parameters.items()}
