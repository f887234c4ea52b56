"""A broadcast group over NCCL, between GPUs.

Every kernel of a broadcast (gathering, casting, packing, sending, loading) is queued on the caller's current CUDA
stream. A stream runs its kernels in order, and memory that is freed on a stream is only used again behind them, so
nothing is read before it is written or overwritten before it is read. vLLM's own packed transfer pulls tensors on two
streams in turn: bytes written on one would be read on the other without waiting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rlsys.weights.manifest import Entry, total_bytes


class NcclChannel:
    """One rank's end of a broadcast group: rank 0 sends, the others receive."""

    def __init__(self, host: str, port: int, rank: int, world_size: int, device: torch.device) -> None:
        """Join the group; raises RuntimeError when NCCL is disabled in this process."""
        from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

        self._device = device
        self._communicator = stateless_init_process_group(host, port, rank, world_size, device)
        if self._communicator.disabled:
            raise RuntimeError(
                "the NCCL communicator is disabled, so broadcasts would silently do nothing: install libnccl, or unset "
                "VLLM_DISABLE_PYNCCL"
            )

    def buffers(self, sizes: Sequence[int]) -> list[None]:
        """Return None for every bucket: each is packed into new memory."""
        return [None] * len(sizes)

    def send(self, packed: Iterator[tuple[Any, torch.Tensor]]) -> None:
        """Broadcast every bucket; return when the GPU has sent the last one."""
        for _, buffer in packed:
            self._broadcast(buffer)
        torch.cuda.current_stream().synchronize()

    def received(self, cut: Sequence[Sequence[Entry]]) -> Iterator[tuple[Sequence[Entry], torch.Tensor]]:
        """Yield every bucket and its bytes, while the next one is already on its way."""
        ahead: tuple[Sequence[Entry], torch.Tensor] | None = None
        for bucket in cut:
            buffer = torch.empty(total_bytes(bucket), dtype=torch.uint8, device=self._device)
            self._broadcast(buffer)
            if ahead is not None:
                yield ahead
            ahead = bucket, buffer
        if ahead is not None:
            yield ahead

    def close(self) -> None:
        """Leave the group."""
        self._communicator.destroy()

    def _broadcast(self, buffer: torch.Tensor) -> None:
        # The stream is given, since vLLM's default is one of its own.
        self._communicator.broadcast(buffer, src=0, stream=torch.cuda.current_stream())
