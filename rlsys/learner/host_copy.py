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


class HostCopy:
    """A copy of anything that `torch.save` takes, with its tensors in host memory.

    What is not a tensor is copied at once, and tensors by `fill`: until then they must not change. Tensors that share
    memory share it in the copy too, so both take the same room in a file.
    """

    def __init__(self, state: Any) -> None:
        self._rest = io.BytesIO()
        pickler = _Pickler(self._rest)
        pickler.dump(state)
        self._tensors = pickler.tensors

    def fill(self) -> None:
        """Copy the tensors; other threads run meanwhile."""
        storages: dict[int, torch.UntypedStorage] = {}
        # The sources live until all are copied, so that none gets the address of another.
        self._tensors = [_copied(tensor, storages) for tensor in self._tensors]

    def take(self) -> Any:
        """Return the copy, which nothing else holds from then on."""
        self._rest.seek(0)
        tensors, self._tensors = self._tensors, []
        return _Unpickler(self._rest, tensors).load()


class _Pickler(pickle.Pickler):
    """Pickles everything but tensors, which it collects."""

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        # Not the parameter itself, which may be given other memory.
        self.tensors.append(value.detach().requires_grad_(value.requires_grad))
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    """Puts the copies where the tensors were."""

    def __init__(self, buffer: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(buffer)
        self._tensors = tensors

    def persistent_load(self, number: Any) -> torch.Tensor:
        return self._tensors[number]


def _copied(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    source = tensor.detach().untyped_storage()
    address = source.data_ptr()
    if not address or address not in storages:  # empty storages have no address
        storages[address] = _copied_storage(source)
    copied = torch.empty(0, dtype=tensor.dtype).set_(
        storages[address], tensor.storage_offset(), tensor.size(), tensor.stride()
    )
    return copied.requires_grad_(tensor.requires_grad)


def _copied_storage(source: torch.UntypedStorage) -> torch.UntypedStorage:
    copied = _memory(source.nbytes())
    # As tensors: a copy between storages keeps Python from running other threads.
    to, of = (torch.empty(0, dtype=torch.uint8, device=each.device).set_(each) for each in (copied, source))
    to.copy_(of)
    return copied


def _memory(size: int) -> torch.UntypedStorage:
    if size < OWN_PAGES:
        return torch.UntypedStorage(size)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # only a hint, that a kernel without huge pages refuses
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8).untyped_storage()  # it holds `pages`
