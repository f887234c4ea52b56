"""Copies of a rank's state in host memory, which training does not change while a thread writes them."""

from __future__ import annotations

import io
import mmap
import pickle
from contextlib import suppress
from typing import Any

import torch

# Larger tensors get memory of their own from the system, and give it back at once when they are written. The C library
# would keep it (`rlsys.build.environment.keep_freed_memory`).
OWN_PAGES = 2**20


def host_copy(state: Any) -> Any:
    """Return a copy of anything that `torch.save` takes, with its tensors in host memory.

    Tensors that share memory share it in the copy too, so both take the same room in a file.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(state)
    buffer.seek(0)
    return _Unpickler(buffer, pickler.copies).load()


# Classes of the module: one made per call would be garbage in a cycle, and hold the copies until it is collected.
class _Pickler(pickle.Pickler):
    """Pickles everything but tensors, which it copies."""

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self.copies: list[torch.Tensor] = []
        self._storages: dict[int, torch.UntypedStorage] = {}

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        self.copies.append(_copied(value, self._storages))
        return len(self.copies) - 1


class _Unpickler(pickle.Unpickler):
    """Puts the copies where the tensors were."""

    def __init__(self, buffer: io.BytesIO, copies: list[torch.Tensor]) -> None:
        super().__init__(buffer)
        self._copies = copies

    def persistent_load(self, number: Any) -> torch.Tensor:
        return self._copies[number]


def _copied(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    source = tensor.detach().untyped_storage()
    address = source.data_ptr()
    # Empty storages have no address: they are not looked up. The others live until the copy is made, so that none gets
    # the address of another.
    if not address or address not in storages:
        storages[address] = _memory(source.nbytes()).copy_(source)
    copied = torch.empty(0, dtype=tensor.dtype).set_(
        storages[address], tensor.storage_offset(), tensor.size(), tensor.stride()
    )
    return copied.requires_grad_(tensor.requires_grad)


def _memory(size: int) -> torch.UntypedStorage:
    if size < OWN_PAGES:
        return torch.UntypedStorage(size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # only a hint, that a kernel without huge pages refuses
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()  # it holds `pages`
