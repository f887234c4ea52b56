"""Memory that the processes of one machine share: what is written into it need not travel to the others."""

from __future__ import annotations

import mmap
import os
import secrets
from dataclasses import dataclass

import torch

NAME = "rlsys-weights"
NONCE_BYTES = 16


@dataclass(frozen=True)
class SharedMemory:
    """`num_bytes` of memory without a name; it is gone with the last process that has it, however that one ends.

    Attributes:
        address: what another process opens it by, until `close`.
        tensor: [num_bytes] uint8, the memory itself. Pages exist from the first write to them on.
    """

    address: str
    tensor: torch.Tensor
    descriptor: int | None = None

    @classmethod
    def create(cls, num_bytes: int) -> SharedMemory | None:
        """None where the system has no such memory (it is Linux' `memfd_create`) or does not allow it."""
        if not hasattr(os, "memfd_create"):
            return None
        descriptor = None
        try:
            descriptor = os.memfd_create(NAME)
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
        """Another process' memory; None where this process cannot reach it, as on another machine."""
        process, number, num_bytes, nonce = address.split()
        path = f"/proc/{process}/fd/{number}"
        try:
            # The same numbers may name something else here: in another container, on another machine.
            if not os.readlink(path).startswith(f"/memfd:{NAME}"):
                return None
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if os.pread(descriptor, NONCE_BYTES, int(num_bytes)).hex() != nonce:
                return None
            return cls(address, _mapped(descriptor, int(num_bytes)))
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let nobody else attach; who has, keeps the memory."""
        if self.descriptor is not None:
            os.close(self.descriptor)


def _mapped(descriptor: int, num_bytes: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, num_bytes + NONCE_BYTES), dtype=torch.uint8)[:num_bytes]
