"""A broadcast group over gloo that leaves the process's default group alone.

Receivers on the sender's machine read the bytes where the sender packs them, in shared memory, and gloo only tells them
that they are there; to the others it carries them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist

from rlsys.weights.shared import SharedMemory


class GlooChannel:
    """Rank 0 sends, the others receive; every operation has the group's deadline.

    Both sides ask for the `rooms` of a broadcast's buckets and then `broadcast` one after another. What a receiver
    finds in its rooms stays until the sender begins its next broadcast.

    Args:
        shared_bytes: room for a whole broadcast, for the sender to say; 0 has gloo carry everything.
    """

    def __init__(
        self, host: str, port: int, rank: int, world_size: int, deadline_s: float, shared_bytes: int = 0
    ) -> None:
        timeout = timedelta(seconds=deadline_s)
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
        self._store = dist.PrefixStore("rlsys-weights", store)
        self._is_sender = rank == 0
        self._memory: SharedMemory | None
        self._memory, remote = self._offered(shared_bytes, world_size) if self._is_sender else self._attached(rank)
        self._own: list[torch.Tensor] = []
        self._token = torch.zeros(1, dtype=torch.uint8)
        self._telling = dist.ProcessGroupGloo(dist.PrefixStore("telling", self._store), rank, world_size, timeout)
        self._carrying = None
        members = [0, *remote]
        if rank in members and remote:
            prefixed = dist.PrefixStore("carrying", self._store)
            self._carrying = dist.ProcessGroupGloo(prefixed, members.index(rank), len(members), timeout)

    def rooms(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        """Where each bucket of a broadcast lies on this rank: [size] uint8 each."""
        if self._memory is not None:
            starts = accumulate(sizes[:-1], initial=0)
            return [self._memory.tensor[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        # Kept from one broadcast to the next: to map a whole model's memory anew costs as much as to fill it.
        wanted = [max(sizes)] if self._is_sender else list(sizes)
        if [room.numel() for room in self._own] != wanted:
            self._own = [torch.empty(size, dtype=torch.uint8) for size in wanted]
        return [self._own[0][:size] for size in sizes] if self._is_sender else self._own

    def send(self, packed: Iterator[tuple[Any, torch.Tensor]]) -> None:
        """Rank 0: broadcast every bucket as soon as it is packed in its room."""
        for _, room in packed:
            self.broadcast(room)

    def broadcast(self, room: torch.Tensor) -> None:
        """Fill a bucket's room on every rank with rank 0's; returns when this rank is done. Raises RuntimeError past
        the deadline or when a peer is gone."""
        _broadcast(self._telling, self._token)  # first: who reads the memory need not wait for the others' bytes
        if self._carrying is not None:
            _broadcast(self._carrying, room)

    def _offered(self, shared_bytes: int, world_size: int) -> tuple[SharedMemory | None, list[int]]:
        """The sender's memory, unless nobody reads it, and the ranks that do not."""
        memory = SharedMemory.create(shared_bytes) if shared_bytes else None
        self._store.set("memory", memory.address if memory is not None else "")
        remote = [rank for rank in range(1, world_size) if self._store.get(f"attached/{rank}") == b"no"]
        self._store.set("remote", json.dumps(remote))
        if memory is not None:
            memory.close()  # everybody has answered
        return (memory if len(remote) < world_size - 1 else None), remote

    def _attached(self, rank: int) -> tuple[SharedMemory | None, list[int]]:
        """The sender's memory, if this rank can reach it, and the ranks that cannot."""
        address = self._store.get("memory").decode()
        memory = SharedMemory.attach(address) if address else None
        self._store.set(f"attached/{rank}", "no" if memory is None else "yes")
        return memory, json.loads(self._store.get("remote"))


def _broadcast(group: Any, tensor: torch.Tensor) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    options.rootTensor = 0
    group.broadcast([tensor], options).wait()
