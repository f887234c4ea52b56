"""libnccl on a CPU: what vLLM's `PyNcclCommunicator` calls, between processes, through memory that they share.

vLLM's communicator itself runs, with its meeting, its checks and its warm-up. As with NCCL, a rank waits for its peers
forever unless the communicator is aborted.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rlsys.weights.shared_memory import SharedMemory
from tests.fakes import streams

CAPACITY = 2**16  # largest broadcast, in bytes
MAX_RANKS = 16
ITEM_SIZES = {0: 1, 1: 1, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2, 10: 1}  # by ncclDataType_t
_created: list[SharedMemory] = []

# Called with the number of a broadcast and its bytes when this rank's kernel starts; 0 is vLLM's warm-up.
on_broadcast: list[Callable[[int, int], None]] = []


class Communicator:
    """One rank's end; a collective of number n ends when every rank has called its n-th."""

    def __init__(self, world_size: int, address: str, rank: int) -> None:
        memory = SharedMemory.attach(address)
        assert memory is not None
        whole = memory.tensor.numpy()
        header = whole[: 8 * 2 * (MAX_RANKS + 1)].view(np.int64).reshape(2, -1)
        # Each number is written by one rank alone: how many collectives a rank has joined, and how many rank 0 has
        # filled in with their sizes.
        self._passed, self._filled, self._size = header[0, :world_size], header[1, :1], header[1, 1:2]
        self._bytes = whole[-CAPACITY:]
        self._rank = rank
        self._number = 0
        self._last: streams.Event | None = None
        self.is_aborted = False
        if not 0 <= rank < world_size or self._passed[rank]:
            raise RuntimeError(f"NCCL error: rank {rank} of {world_size} is there already")
        self._passed[rank] = 1
        while not all(self._passed):
            time.sleep(0.0005)

    def broadcast(self, pointer: int, num_bytes: int, root: int, stream: streams.Stream) -> None:
        """Queue the next broadcast; those of one communicator run one after another, also on several streams."""
        if self._last is not None:
            stream.add(self._last.query)
        stream.add(self._kernel(pointer, num_bytes, root))
        self._last = stream.record_event()

    def _kernel(self, pointer: int, num_bytes: int, root: int) -> Callable[[], bool]:
        number, self._number = self._number, self._number + 1
        is_begun = is_filled = False

        def kernel() -> bool:
            nonlocal is_begun, is_filled
            if self.is_aborted:
                return True
            if not is_begun:
                is_begun = True
                for hook in on_broadcast:
                    hook(number, num_bytes)
            if self._rank != root:
                return self._received(pointer, num_bytes, number)
            if not is_filled:
                is_filled = True
                ctypes.memmove(self._bytes.ctypes.data, pointer, num_bytes)
                self._size[0], self._filled[0], self._passed[root] = num_bytes, number + 1, number + 2
            return bool((self._passed >= number + 2).all())

        return kernel

    def _received(self, pointer: int, num_bytes: int, number: int) -> bool:
        if self._filled[0] <= number:
            return False
        if self._passed[self._rank] == number + 1:
            if self._size[0] != num_bytes:
                raise RuntimeError(f"broadcast {number}: {self._size[0]} bytes were sent, {num_bytes} expected")
            ctypes.memmove(pointer, self._bytes.ctypes.data, num_bytes)
            self._passed[self._rank] = number + 2
        return True


class Library:
    """The functions of vLLM's `NCCLLibrary` that a communicator calls for broadcasts."""

    def __init__(self, so_file: str | None = None) -> None:
        pass

    def ncclGetRawVersion(self) -> int:  # noqa: N802
        return 22907

    def ncclGetVersion(self) -> str:  # noqa: N802
        return "2.29.7"

    def ncclGetUniqueId(self) -> Any:  # noqa: N802
        from vllm.distributed.device_communicators.pynccl_wrapper import ncclUniqueId

        memory = SharedMemory.create(8 * 2 * (MAX_RANKS + 1) + CAPACITY)
        assert memory is not None
        _created.append(memory)
        unique_id = ncclUniqueId()
        ctypes.memmove(unique_id.internal, memory.address.encode(), len(memory.address))
        return unique_id

    def ncclCommInitRank(self, world_size: int, unique_id: Any, rank: int) -> Communicator:  # noqa: N802
        return Communicator(world_size, bytes(unique_id.internal).rstrip(b"\0").decode(), rank)

    def ncclAllReduce(  # noqa: N802
        self, sent: Any, received: Any, count: int, dtype: int, op: int, comm: Communicator, stream: Any
    ) -> None:
        # Only vLLM's warm-up, whose numbers nobody reads.
        comm.broadcast(received.value, 0, 0, streams.by_handle(stream.value))

    def ncclBroadcast(  # noqa: N802
        self, sent: Any, received: Any, count: int, dtype: int, root: int, comm: Communicator, stream: Any
    ) -> None:
        num_bytes = count * ITEM_SIZES[dtype]
        comm.broadcast(received.value or 0, num_bytes, root, streams.by_handle(stream.value))

    def ncclCommAbort(self, comm: Communicator) -> None:  # noqa: N802
        comm.is_aborted = True


def install() -> None:
    """Let vLLM's communicators of this process use this library, and take memory of the CPU for a GPU's."""
    from vllm.distributed.device_communicators import pynccl

    class CpuCommunicator(pynccl.PyNcclCommunicator):
        def __init__(self, group: Any, device: Any, library_path: str | None = None) -> None:
            super().__init__(group, torch.device("cpu"), library_path)

        def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
            super().broadcast(tensor, src, stream)
            if tensor.dtype != torch.uint8:  # those are in `Memory`, which the system never takes back
                (stream or streams.vllm_stream()).add(lambda: tensor is not None)

    pynccl.NCCLLibrary = Library
    pynccl.current_stream = streams.vllm_stream
    pynccl.PyNcclCommunicator = CpuCommunicator
