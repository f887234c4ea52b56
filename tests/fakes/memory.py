"""A GPU's memory that other processes can map: a caching allocator, and CUDA IPC handles to what it gave out."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from rlsys.weights.shared_memory import SharedMemory

LEARNERS_DEVICE = 5  # the learner's number of the GPU, which the engine must not use


class Memory:
    """Memory for tensors of bytes. Blocks that nobody holds are given out again at once and keep what they held."""

    def __init__(self) -> None:
        self._blocks: list[SharedMemory] = []
        self._places: dict[int, tuple[SharedMemory, torch.UntypedStorage]] = {}  # by address

    @property
    def num_blocks(self) -> int:
        """Number of blocks that were ever needed at once, of each size."""
        return len(self._blocks)

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the same shape in this memory; other than bytes stay where they are."""
        if tensor.dtype != torch.uint8 or tensor.dim() != 1 or not len(tensor):
            return tensor
        for block in self._blocks:
            if len(block.tensor) == len(tensor) and _num_users(block.tensor) == 1:
                return block.tensor.view(-1)
        block = SharedMemory.create(len(tensor))
        assert block is not None
        self._blocks.append(block)
        address = block.tensor.untyped_storage().data_ptr()
        same_bytes = (ctypes.c_char * len(tensor)).from_address(address)
        self._places[address] = block, torch.frombuffer(same_bytes, dtype=torch.uint8).untyped_storage()
        return block.tensor.view(-1)

    def unheld(self, tensor: Any) -> Any:
        """Return a tensor with the same memory that does not hold it: a kernel that is still to run does not."""
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
            return tensor
        place = self._places.get(tensor.untyped_storage().data_ptr())
        if place is None:
            return tensor
        with torch.utils._python_dispatch._disable_current_modes():
            shape = (tensor.storage_offset(), tensor.size(), tensor.stride())
            return torch.empty(0, dtype=tensor.dtype).set_(place[1], *shape)

    def reduce_tensor(self, tensor: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
        """Return what torch's function of this name returns for CUDA tensors: how another process rebuilds it."""
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        place = self._places.get(tensor.untyped_storage().data_ptr())
        handle = place[0].address.encode() if place is not None else None  # None: a tensor without bytes has no memory
        sizes = (tensor.size(), tensor.stride(), tensor.storage_offset())
        storage = (LEARNERS_DEVICE, handle, len(tensor), 0)
        counters = (b"counter", 0, b"event", True)
        return rebuild_cuda_tensor, (torch.Tensor, *sizes, MappedStorage, tensor.dtype, *storage, False, *counters)


class MappedStorage:
    """The storage class of a handle: maps the memory of the process that made it."""

    def __new__(cls, size: int, *, dtype: torch.dtype, device: int, _internal: bool) -> Any:
        _check_device(device)
        return torch.UntypedStorage(size)

    @classmethod
    def _new_shared_cuda(cls, device: int, handle: bytes, *_: Any) -> torch.UntypedStorage:
        _check_device(device)
        memory = SharedMemory.attach(handle.decode())
        if memory is None:
            raise RuntimeError("CUDA error: invalid device context")
        return memory.tensor.untyped_storage()

    @classmethod
    def _release_ipc_counter(cls, *_: Any, device: int) -> None:
        _check_device(device)


def _check_device(device: int) -> None:
    if device != 0:
        raise RuntimeError(f"CUDA error: invalid device ordinal {device}")


def _num_users(tensor: torch.Tensor) -> int:
    """Return how many tensors use this one's memory."""
    with torch.utils._python_dispatch._disable_current_modes():
        storage = tensor.untyped_storage()
        return int(torch._C._storage_Use_Count(storage._cdata)) - 1  # without `storage` itself


GPU = Memory()  # this process's
