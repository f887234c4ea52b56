"""A broadcast group over NCCL, between GPUs.

Every kernel of a broadcast (gathering, casting, packing, sending, loading) is queued on the caller's current CUDA
stream. A stream runs its kernels in order, and memory that is freed on a stream is only used again behind them, so
nothing is read before it is written or overwritten before it is read. vLLM's own packed transfer pulls tensors on two
streams in turn: bytes written on one would be read on the other without waiting.

NCCL itself has no deadlines: a kernel waits for its peers forever, and so does everything that waits for the kernel.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from rlsys.runtime.daemon_threads import DaemonThreads
from rlsys.weights.manifest import Entry, total_bytes

T = TypeVar("T")
# Seconds between two looks at a bucket that is under way; a bucket takes some milliseconds.
POLL_S = 0.0005


class NcclChannel:
    """One rank's end of a broadcast group: rank 0 sends, the others receive."""

    def __init__(
        self, host: str, port: int, rank: int, world_size: int, device: torch.device, deadline_s: float
    ) -> None:
        """Join the group; blocks until all ranks have joined.

        Args:
            host: address of rank 0.
            port: port of rank 0, where the ranks meet.
            rank: rank of this process; 0 is the sender.
            world_size: number of ranks.
            device: this rank's GPU.
            deadline_s: seconds for joining, and for each later bucket.

        Raises:
            RuntimeError: NCCL is disabled in this process, or a peer has not joined by the deadline.
        """
        self._device = device
        self._deadline_s = deadline_s
        self._rank = rank
        self._communicator = _joined(host, port, rank, world_size, device, deadline_s)
        self._check_enabled()

    def buffers(self, sizes: Sequence[int]) -> list[None]:
        """Return None for every bucket: each is packed into new memory."""
        return [None] * len(sizes)

    def send(self, packed: Iterator[tuple[Any, torch.Tensor]]) -> None:
        """Broadcast every bucket; return when the GPU has sent the last one. Raises RuntimeError at the deadline."""
        for _ in self._broadcasts(packed):
            pass

    def received(self, cut: Sequence[Sequence[Entry]]) -> Iterator[tuple[Sequence[Entry], torch.Tensor]]:
        """Yield every bucket and its bytes, while the next one is already on its way.

        Raises RuntimeError at the deadline.
        """
        sizes = ((bucket, total_bytes(bucket)) for bucket in cut)
        yield from self._broadcasts(
            (bucket, torch.empty(size, dtype=torch.uint8, device=self._device)) for bucket, size in sizes
        )

    def close(self) -> None:
        """Leave the group; ends kernels that wait for a peer."""
        self._communicator.destroy()

    def _broadcasts(self, buckets: Iterable[tuple[T, torch.Tensor]]) -> Iterator[tuple[T, torch.Tensor]]:
        """Broadcast every buffer; yield it once its bytes have arrived, while the next one is already on its way.

        Waiting for each keeps the host at most two buckets ahead. Behind a kernel that waits for a lost peer the queue
        of a stream would fill up, and the host would block where no deadline holds.
        """
        ahead: tuple[T, torch.Tensor, Any] | None = None
        for number, (bucket, buffer) in enumerate(buckets):
            event = self._broadcast(buffer)
            if ahead is not None:
                self._wait(ahead[2], number - 1)
                yield ahead[0], ahead[1]
            ahead = bucket, buffer, event
        if ahead is not None:
            self._wait(ahead[2], number)
            yield ahead[0], ahead[1]

    def _broadcast(self, buffer: torch.Tensor) -> Any:
        """Queue the broadcast of one buffer; return the CUDA event behind it."""
        self._check_enabled()
        stream = torch.cuda.current_stream()
        # The stream is given, since vLLM's default is one of its own.
        self._communicator.broadcast(buffer, src=0, stream=stream)
        return stream.record_event()

    def _wait(self, event: Any, number: int) -> None:
        started = time.monotonic()
        while not event.query():
            if time.monotonic() - started > self._deadline_s:
                # Else this process could not even free memory, and would have to be killed.
                self.close()
                raise RuntimeError(
                    f"rank {self._rank} of the weight group waited {self._deadline_s:g} s for bucket {number} of a "
                    "broadcast: another rank has ended, has failed, or does not take part"
                )
            time.sleep(POLL_S)

    def _check_enabled(self) -> None:
        if self._communicator.disabled:
            raise RuntimeError(
                "the NCCL communicator is disabled, so broadcasts would silently do nothing: install libnccl, or unset "
                "VLLM_DISABLE_PYNCCL; a channel that was closed, as at a deadline, cannot be used again"
            )


def _joined(host: str, port: int, rank: int, world_size: int, device: torch.device, deadline_s: float) -> Any:
    """Return vLLM's communicator once all ranks have joined, or raise RuntimeError at the deadline.

    It is made in a thread of its own. NCCL waits for the other ranks without a deadline. And vLLM gives the thread in
    which it makes a communicator a new current CUDA stream: DeepSpeed, which orders some kernels by the default stream,
    must not compute on another one.
    """
    from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group

    threads = DaemonThreads("join-weights")
    joined = threads.submit(stateless_init_process_group, host, port, rank, world_size, device)
    try:
        return joined.result(deadline_s)
    except TimeoutError as error:
        raise RuntimeError(
            f"rank {rank} of the weight group at {host}:{port} waited {deadline_s:g} s for all {world_size} ranks to "
            "join: another rank has ended, has failed, or cannot reach that address"
        ) from error
