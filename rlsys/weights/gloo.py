"""A broadcast group over gloo, apart from the process's default group.

Receivers on the sender's machine read the bytes in shared memory, where the sender packs them; gloo only signals that
they are complete. Receivers on other machines get the bytes through gloo.

Ray's object store is no replacement on one machine: it copies the bytes once more, into pages that are mapped again for
every broadcast, and vLLM's worker processes under tensor parallelism are not Ray's and cannot read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist

from rlsys.runtime.meeting import meeting_store
from rlsys.weights.shared_memory import SharedMemory

ALIGNMENT = 8


class GlooChannel:
    """One rank's end of a broadcast group: rank 0 sends, the others receive.

    Both sides get the `buffers` of a broadcast's buckets and then call `broadcast` for one after another. The bytes in
    a receiver's buffers stay valid until the sender begins its next broadcast.

    There are two process groups. `signal_group` has all ranks and moves one byte per bucket: "the bucket is complete in
    shared memory". `data_group` has rank 0 and the ranks that cannot reach its memory, and moves the buckets.
    """

    def __init__(
        self, host: str, port: int, rank: int, world_size: int, deadline_s: float, shared_bytes: int = 0
    ) -> None:
        """Join the group; blocks until all ranks have joined.

        Args:
            host: address of rank 0.
            port: port of rank 0, where the ranks meet.
            rank: rank of this process; 0 is the sender.
            world_size: number of ranks.
            deadline_s: seconds for joining, and for each later operation.
            shared_bytes: `shared_size` of a broadcast's buckets, to put them into shared memory; given by the sender
                alone. 0 sends everything through gloo.

        Raises:
            RuntimeError: a peer has not joined by the deadline.
        """
        timeout = timedelta(seconds=deadline_s)
        # The store does not wait; `_offered` and `_attached` do, each for the keys that the other side sets.
        store = meeting_store(host, port, world_size, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
        self._store: Any = dist.PrefixStore("rlsys-weights", store)
        self._is_sender = rank == 0
        self._memory: SharedMemory | None
        self._memory, remote = self._offered(shared_bytes, world_size) if self._is_sender else self._attached(rank)
        self._own: list[torch.Tensor] = []
        self._token = torch.zeros(1, dtype=torch.uint8)
        signal_store = dist.PrefixStore("signal", self._store)
        self._signal_group: Any = dist.ProcessGroupGloo(signal_store, rank, world_size, timeout)
        self._data_group: Any = None
        members = [0, *remote]
        if rank in members and remote:
            data_store = dist.PrefixStore("data", self._store)
            self._data_group = dist.ProcessGroupGloo(data_store, members.index(rank), len(members), timeout)

    def buffers(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        """Return the memory of each bucket of a broadcast on this rank, [size] uint8 each.

        In shared memory every bucket has a place of its own, one after another. Without it the sender reuses a single
        buffer, which gloo has sent before the next bucket is packed, while a receiver has one per bucket.
        """
        if self._memory is not None:  # sender and attached receivers compute the same places from the same sizes
            starts = accumulate(map(_aligned, sizes[:-1]), initial=0)
            return [self._memory.tensor[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        # Kept from one broadcast to the next: mapping a whole model's memory again costs as much as filling it.
        wanted = [max(sizes)] if self._is_sender else list(sizes)
        if [buffer.numel() for buffer in self._own] != wanted:
            self._own = [torch.empty(size, dtype=torch.uint8) for size in wanted]
        return [self._own[0][:size] for size in sizes] if self._is_sender else self._own

    def send(self, packed: Iterator[tuple[Any, torch.Tensor]]) -> None:
        """Broadcast every bucket as soon as it is packed in its buffer; for rank 0."""
        for _, buffer in packed:
            self.broadcast(buffer)

    def broadcast(self, buffer: torch.Tensor) -> None:
        """Fill a bucket's buffer on every rank with rank 0's bytes; return when this rank is done.

        Raises:
            RuntimeError: the deadline has passed, or a peer is gone.
        """
        if self._signal_group is None:
            raise RuntimeError("the weight channel is closed, as after a failed broadcast: it must be opened again")
        # The signal comes first, so that ranks which read the shared memory do not wait for the others' bytes.
        _broadcast(self._signal_group, self._token)
        if self._data_group is not None:
            _broadcast(self._data_group, buffer)

    def close(self) -> None:
        """Leave the group; peers that wait for this rank fail at once."""
        # Destroying a group closes its connections. An error that was raised in it may still hold this object.
        self._signal_group = self._data_group = self._store = self._memory = None

    def _offered(self, shared_bytes: int, world_size: int) -> tuple[SharedMemory | None, list[int]]:
        """Offer the sender's memory to all ranks; return it (None if no rank reads it), and the ranks that cannot."""
        memory = SharedMemory.create(shared_bytes) if shared_bytes else None
        self._store.set("memory", memory.address if memory is not None else "")
        # Blocks until every rank has tried to attach.
        remote = [rank for rank in range(1, world_size) if self._store.get(f"attached/{rank}") == b"no"]
        self._store.set("remote", json.dumps(remote))
        if memory is not None:
            memory.close()  # every rank has attached or failed to
        return (memory if len(remote) < world_size - 1 else None), remote

    def _attached(self, rank: int) -> tuple[SharedMemory | None, list[int]]:
        """Return the sender's memory (None when this rank cannot reach it), and the ranks that cannot."""
        address = self._store.get("memory").decode()
        memory = SharedMemory.attach(address) if address else None
        self._store.set(f"attached/{rank}", "no" if memory is None else "yes")
        return memory, json.loads(self._store.get("remote"))


def shared_size(sizes: Sequence[int]) -> int:
    """Return the bytes of shared memory that buckets of these sizes take."""
    return sum(map(_aligned, sizes))


def _aligned(num_bytes: int) -> int:
    """Round up, so that every bucket begins where words of `ALIGNMENT` bytes may begin."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _broadcast(group: Any, tensor: torch.Tensor) -> None:
    # On the group itself: torch.distributed's functions would need it registered with the default group.
    options = dist.BroadcastOptions()
    options.rootRank = 0
    options.rootTensor = 0
    group.broadcast([tensor], options).wait()
