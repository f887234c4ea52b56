"""The learner's side of a broadcast: gather, pack, send. Every rank calls; rank 0 holds the channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import nn

from rlsys.models.checkpoint_names import CheckpointParameter, checkpoint_parameters
from rlsys.models.folder import saved_dtype
from rlsys.weights.checksum import checksum
from rlsys.weights.gather import gather_parameters
from rlsys.weights.gloo import GlooChannel, shared_size
from rlsys.weights.manifest import Entry, Manifest, buckets, pack_bucket, to_update_info, total_bytes
from rlsys.weights.nccl import NcclChannel

PackedBuckets = Iterator[tuple[Sequence[Entry], torch.Tensor]]


class Channel(Protocol):
    """The channel that rank 0 sends packed buckets through."""

    def buffers(self, sizes: Sequence[int]) -> Sequence[torch.Tensor | None]:
        """Return the memory to pack each bucket of [size] bytes into; None for newly allocated memory."""
        ...

    def send(self, packed: PackedBuckets) -> None:
        """Send every bucket."""
        ...

    def close(self) -> None:
        """Leave the group; peers that wait for this rank fail."""
        ...


class WeightSender:
    """The sender of a module's parameters, with adapters merged in: in order, in the dtypes that engines hold."""

    def __init__(
        self, module: nn.Module, dtype: torch.dtype, rank: int, bucket_bytes: int, *, is_checked: bool = True
    ) -> None:
        """Prepare to send; nothing is opened yet.

        Args:
            module: the Hugging Face model inside the learner's engine.
            dtype: the engines' dtype; parameters that the architecture keeps in float32 are sent in that.
            rank: this learner rank. Only rank 0 sends, but all ranks gather, since ZeRO-3 keeps a shard on each.
            bucket_bytes: size of one packed transfer.
            is_checked: whether to sum up the bytes that are sent.
        """
        self._module = module
        self._dtype = dtype
        self._rank = rank
        self._bucket_bytes = bucket_bytes
        self._is_checked = is_checked
        self._channel: Channel | None = None
        self._exported: list[torch.Tensor] = []

    @cached_property
    def _parameters(self) -> list[CheckpointParameter]:
        return checkpoint_parameters(self._module)

    def manifest(self) -> Manifest:
        """Return an entry for every tensor that is sent."""
        return [
            Entry(name, saved_dtype(self._module, parameter.member or name, self._dtype), shape, unit)
            for unit, parameter in enumerate(self._parameters)
            for name, shape in parameter.shapes.items()
        ]

    def update_info(self) -> dict[str, Any]:
        """Return the manifest in the form that the engines take."""
        return to_update_info(self.manifest())

    def open(
        self, backend: str, host: str, port: int, world_size: int, deadline_s: float, share_memory: bool = True
    ) -> None:
        """Join the weight group as its sender; block until every engine has joined, or the deadline."""
        if self._rank != 0 or backend == "ipc":  # IPC handles travel with the control call, without a group
            return
        self._close()  # of other members
        if backend == "gloo":
            cut = buckets(self.manifest(), self._bucket_bytes)
            shared = shared_size([total_bytes(bucket) for bucket in cut]) if share_memory else 0
            self._channel = GlooChannel(host, port, 0, world_size, deadline_s, shared)
        else:
            device = torch.device("cuda", torch.cuda.current_device())
            self._channel = NcclChannel(host, port, 0, world_size, device, deadline_s)

    def send(self) -> list[int]:
        """Gather and broadcast bucket by bucket, in the same fixed order on every rank.

        Returns: the `checksum` of every bucket on rank 0, where they are checked; else nothing.
        """
        sums: list[torch.Tensor] = []
        if self._rank == 0 and self._channel is None:
            raise RuntimeError("the weight channel is not open, or was closed by a failed broadcast")
        packed = self._packed(self._channel, sums)
        try:
            if self._channel is not None:
                self._channel.send(packed)
        except Exception:
            for _ in packed:  # other ranks wait for this one in the gathering
                pass
            self._close()  # so that the engines do not wait for the rest
            raise
        for _ in packed:  # ranks without the channel must take part in the gathering too
            pass
        return [int(each) for each in sums]

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def export_ipc(self) -> tuple[dict[str, Any], list[int]]:
        """Return CUDA IPC handles to packed copies of the parameters, for engines on the same GPU, and their sums.

        The copies live until the next call.
        """
        from torch.multiprocessing.reductions import reduce_tensor

        # The engines are done with the previous copies, since a broadcast ends with its last engine. They are freed
        # before new ones are made.
        self._exported = []
        handles = []
        sums: list[torch.Tensor] = []
        for _, buffer in self._packed(None, sums):
            uuid = str(torch.cuda.get_device_properties(buffer.device).uuid)
            handles.append({uuid: reduce_tensor(buffer)[1]})
            self._exported.append(buffer)  # a handle is valid only while its memory lives
        # Another process reads the copies, on streams that do not wait for the kernels which fill them.
        torch.cuda.current_stream().synchronize()
        return {**self.update_info(), "handles": handles}, [int(each) for each in sums]

    def _packed(self, channel: Channel | None, sums: list[torch.Tensor]) -> PackedBuckets:
        """Yield packed copies of all buckets on rank 0, in the channel's buffers; yield nothing on other ranks.

        Every rank must exhaust the iterator. The copy is made inside the gathering context: the parameters there are
        views of memory that DeepSpeed reuses when the context closes.
        """
        cut = buckets(self.manifest(), self._bucket_bytes)
        # Under ZeRO-3 at most one bucket of parameters is whole at a time.
        no_buffers: list[torch.Tensor | None] = [None] * len(cut)
        targets = no_buffers if channel is None else channel.buffers([total_bytes(bucket) for bucket in cut])
        for bucket, target in zip(cut, targets, strict=True):
            units = [self._parameters[unit] for unit in dict.fromkeys(entry.unit for entry in bucket)]
            with gather_parameters([source for unit in units for source in unit.sources]):
                # The buffer's device. None, for a channel with buffers of its own, leaves a tensor where it is.
                device = None if target is None else target.device
                packed = pack_bucket(self._read(units, bucket, device), target) if self._rank == 0 else None
            if packed is None:
                continue
            if self._is_checked:
                sums.append(checksum(packed))
            yield bucket, packed

    def _read(
        self, units: Sequence[CheckpointParameter], bucket: Sequence[Entry], device: torch.device | None
    ) -> list[torch.Tensor]:
        values = {name: tensor for unit in units for name, tensor in unit.read().items()}
        return [values[entry.name].to(device, entry.dtype) for entry in bucket]
