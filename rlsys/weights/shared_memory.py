"""Memory that processes of one machine share, so that bytes written by one need not be sent to the others."""

from __future__ import annotations

import mmap
import os
import secrets
from dataclasses import dataclass

import torch

NAME = "rlsys-weights"  # shown by /proc as the target of the descriptor
NONCE_BYTES = 16  # random bytes behind the memory, by which a process recognises that it has opened the right one


@dataclass(frozen=True)
class SharedMemory:
    """Anonymous shared memory; the system frees it with the last process that holds it, however that one ends.

    Attributes:
        address: text by which another process attaches, until `close`.
        tensor: [num_bytes] uint8, the memory itself. The system allocates a page at the first write to it.
        descriptor: the owner's file descriptor; None in processes that attached.
    """

    address: str
    tensor: torch.Tensor
    descriptor: int | None = None

    @classmethod
    def create(cls, num_bytes: int) -> SharedMemory | None:
        """Create memory, or return None where the system has none (Linux' `memfd_create`) or does not allow it."""
        if not hasattr(os, "memfd_create"):
            return None
        descriptor = None
        try:
            descriptor = os.memfd_create(NAME)
            # A memfd has no name in the file system, so nothing has to be deleted after a crash.
            os.ftruncate(descriptor, num_bytes + NONCE_BYTES)
            nonce = secrets.token_bytes(NONCE_BYTES)
            os.pwrite(descriptor, nonce, num_bytes)
            tensor = _mapped(descriptor, num_bytes)
        except OSError:
            if descriptor is not None:
                os.close(descriptor)
            return None
        return cls(f"{os.getpid()} {descriptor} {num_bytes} {nonce.hex()}", tensor, descriptor)

    @classmethod
    def attach(cls, address: str) -> SharedMemory | None:
        """Attach to another process's memory, or return None where it is out of reach, as on another machine."""
        process, number, num_bytes, nonce = address.split()
        path = f"/proc/{process}/fd/{number}"
        try:
            # In another container or on another machine the same numbers may name something else.
            if not os.readlink(path).startswith(f"/memfd:{NAME}"):
                return None
            # For writing too: mmap maps for both by default, and torch.frombuffer warns about memory it cannot write.
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if os.pread(descriptor, NONCE_BYTES, int(num_bytes)).hex() != nonce:
                return None
            return cls(address, _mapped(descriptor, int(num_bytes)))  # the mapping outlives the descriptor
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Close the descriptor: no further process can attach. Those that have attached keep the memory."""
        if self.descriptor is not None:
            os.close(self.descriptor)


def _mapped(descriptor: int, num_bytes: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, num_bytes + NONCE_BYTES), dtype=torch.uint8)[:num_bytes]
