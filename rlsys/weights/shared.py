"""Memory that the processes of one machine share: what is written into it need not travel to the others."""

from __future__ import annotations

import mmap
import os
import secrets
from dataclasses import dataclass

import torch

NONCE_BYTES = 16


@dataclass(frozen=True)
class SharedMemory:
    """`num_bytes` of memory without a name; it is gone with the last process that has it, however that one ends.

    Attributes:
        address: what another process opens it by.
        tensor: [num_bytes] uint8, the memory itself. Pages exist from the first write to them on.
    """

    address: str
    tensor: torch.Tensor

    @classmethod
    def create(cls, num_bytes: int) -> SharedMemory | None:
        """None where the system has no such memory (it is Linux' `memfd_create`)."""
        if not hasattr(os, "memfd_create"):
            return None
        descriptor = os.memfd_create("rlsys-weights")  # stays open: it is what the address names
        os.ftruncate(descriptor, num_bytes + NONCE_BYTES)
        nonce = secrets.token_bytes(NONCE_BYTES)
        os.pwrite(descriptor, nonce, num_bytes)
        address = f"{os.getpid()} {descriptor} {num_bytes} {nonce.hex()}"
        return cls(address, _mapped(descriptor, num_bytes))

    @classmethod
    def attach(cls, address: str) -> SharedMemory | None:
        """Another process' memory; None where this process cannot reach it, as on another machine."""
        process, number, num_bytes, nonce = address.split()
        try:
            descriptor = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # The same numbers may name something else here: in another container, on another machine.
            if os.pread(descriptor, NONCE_BYTES, int(num_bytes)).hex() != nonce:
                return None
            return cls(address, _mapped(descriptor, int(num_bytes)))
        except OSError:
            return None
        finally:
            os.close(descriptor)


def _mapped(descriptor: int, num_bytes: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, num_bytes + NONCE_BYTES), dtype=torch.uint8)[:num_bytes]
