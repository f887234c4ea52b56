"""The learner's side of a broadcast: gather, pack, send. Every rank calls; rank 0 holds the channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from rlsys.models.parameters import exported_parameters
from rlsys.weights.gather import gather_parameters
from rlsys.weights.gloo import GlooChannel
from rlsys.weights.manifest import (
    Entry,
    Manifest,
    buckets,
    pack_bucket,
    to_update_info,
    total_bytes,
    unpack_bucket,
)

PackedBuckets = Iterator[tuple[Sequence[Entry], torch.Tensor]]


class Channel(Protocol):
    """The channel that rank 0 sends packed buckets through."""

    def buffers(self, sizes: Sequence[int]) -> Sequence[torch.Tensor | None]:
        """Return the memory to pack each bucket of [size] bytes into; None for newly allocated memory."""
        ...

    def send(self, packed: PackedBuckets) -> None:
        """Send every bucket."""
        ...


class WeightSender:
    """The sender of a module's parameters: in order, cast to the engines' dtype, with adapters merged in."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, rank: int, bucket_bytes: int) -> None:
        """Prepare to send; nothing is opened yet.

        Args:
            module: the Hugging Face model inside the learner's engine.
            dtype: number format of the engines' weights.
            rank: this learner rank. Only rank 0 sends, but all ranks gather, since ZeRO-3 keeps a shard on each.
            bucket_bytes: size of one packed transfer.
        """
        self._module = module
        self._dtype = dtype
        self._rank = rank
        self._bucket_bytes = bucket_bytes
        self._channel: Channel | None = None
        self._exported: list[torch.Tensor] = []

    def manifest(self) -> Manifest:
        """Return an entry for every parameter that is sent."""
        return [Entry(parameter.name, self._dtype, parameter.shape) for parameter in exported_parameters(self._module)]

    def update_info(self) -> dict[str, Any]:
        """Return the manifest in the form that the engines take."""
        return to_update_info(self.manifest())

    def open(
        self, backend: str, host: str, port: int, world_size: int, deadline_s: float, share_memory: bool = True
    ) -> None:
        """Join the weight group as its sender; block until every engine has joined, or the deadline."""
        if self._rank != 0 or backend == "ipc":  # IPC handles travel with the control call, without a group
            return
        if backend == "gloo":
            # The buckets of a broadcast hold exactly the manifest's bytes, without gaps: see `GlooChannel.buffers`.
            shared = total_bytes(self.manifest()) if share_memory else 0
            self._channel = GlooChannel(host, port, 0, world_size, deadline_s, shared)
        else:
            self._channel = NcclChannel(host, port, world_size, self._bucket_bytes)

    def send(self) -> None:
        """Gather and broadcast bucket by bucket, in the same fixed order on every rank."""
        packed = self._packed(self._bucket_bytes, self._channel)
        if self._channel is not None:
            self._channel.send(packed)
        for _ in packed:  # ranks without the channel must take part in the gathering too
            pass

    def export_ipc(self) -> dict[str, Any]:
        """Return CUDA IPC handles to copies of the parameters, for engines on the same GPU.

        The copies live until the next call.
        """
        from torch.multiprocessing.reductions import reduce_tensor

        # The engines are done with the previous copies, since a broadcast ends with its last engine. They are freed
        # before new ones are made.
        self._exported = []
        handles = []
        for bucket, buffer in self._packed(0):  # 0 bytes: one parameter per bucket, since each has its own handle
            for entry, (name, tensor) in zip(bucket, unpack_bucket(buffer, bucket), strict=True):
                uuid = str(torch.cuda.get_device_properties(tensor.device).uuid)
                handles.append({uuid: reduce_tensor(tensor)[1]})
                self._exported.append(tensor)  # a handle is valid only while its memory lives
                assert name == entry.name
        return {**self.update_info(), "ipc_handles": handles}

    def _packed(self, max_bytes: int, channel: Channel | None = None) -> PackedBuckets:
        """Yield packed copies of all buckets on rank 0, in the channel's buffers; yield nothing on other ranks.

        Every rank must exhaust the iterator. The copy is made inside the gathering context: the parameters there are
        views of memory that DeepSpeed reuses when the context closes.
        """
        by_name = {parameter.name: parameter for parameter in exported_parameters(self._module)}
        cut = buckets(self.manifest(), max_bytes)
        # Under ZeRO-3 at most one bucket of parameters is whole at a time.
        no_buffers: list[torch.Tensor | None] = [None] * len(cut)
        targets = no_buffers if channel is None else channel.buffers([total_bytes(bucket) for bucket in cut])
        for bucket, target in zip(cut, targets, strict=True):
            chosen = [by_name[entry.name] for entry in bucket]
            with gather_parameters([source for parameter in chosen for source in parameter.sources]):
                # The buffer's device. None, for a channel with buffers of its own, leaves a tensor where it is.
                device = None if target is None else target.device
                tensors = [p.read().to(device, self._dtype) for p in chosen] if self._rank == 0 else []
                packed = pack_bucket(tensors, target) if tensors else None
            if packed is not None:
                yield bucket, packed


class NcclChannel:
    """Rank 0 of the group that vLLM's `nccl` engine opens; packs and double-buffers as that engine expects."""

    NUM_BUFFERS = 2  # one is filled while the GPU sends the other

    def __init__(self, host: str, port: int, world_size: int, bucket_bytes: int) -> None:
        """Join the group; raises RuntimeError when NCCL is disabled in this process."""
        from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

        self._bucket_bytes = bucket_bytes
        device = torch.accelerator.current_device_index()
        self._communicator = stateless_init_process_group(host, port, 0, world_size, device)
        if self._communicator.disabled:
            raise RuntimeError(
                "the NCCL communicator is disabled, so broadcasts would silently do nothing: install libnccl, or unset "
                "VLLM_DISABLE_PYNCCL"
            )

    def buffers(self, sizes: Sequence[int]) -> list[None]:
        """Return None for every bucket: vLLM's producer copies into its own buffers."""
        return [None] * len(sizes)

    def send(self, packed: PackedBuckets) -> None:
        """Broadcast every packed bucket; return when the GPU has sent the last one."""
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        packed_nccl_broadcast_producer(
            iterator=(named for bucket, buffer in packed for named in unpack_bucket(buffer, bucket)),
            group=self._communicator,
            src=0,
            post_iter_func=lambda named: named[1],
            buffer_size_bytes=self._bucket_bytes,
            num_buffers=self.NUM_BUFFERS,
        )
