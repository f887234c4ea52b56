"""A broadcast group over gloo that leaves the process's default group alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class GlooChannel:
    """Rank 0 sends, the others receive; every operation has the group's deadline."""

    def __init__(self, host: str, port: int, rank: int, world_size: int, deadline_s: float) -> None:
        timeout = timedelta(seconds=deadline_s)
        store = dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
        self._store = dist.PrefixStore("rlsys-weights", store)
        self._group = dist.ProcessGroupGloo(self._store, rank, world_size, timeout)

    def send(self, packed: Iterator[tuple[Any, torch.Tensor]]) -> None:
        """Rank 0: broadcast every packed bucket in turn."""
        for _, buffer in packed:
            self.broadcast(buffer if buffer.device.type == "cpu" else buffer.cpu())

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Fill `tensor` on every rank with rank 0's; returns when this rank is done. Raises RuntimeError past the
        deadline or when a peer is gone."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        self._group.broadcast([tensor], options).wait()  # type: ignore[attr-defined]
