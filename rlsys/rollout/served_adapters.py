"""A rollout worker's low-rank adapters: one a policy version, kept until the last request under it has ended."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rlsys.weights.packed_adapter import PackedAdapter, Sums, check_sums

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM reserves room for."""
MEMORY = Path("/dev/shm")
FOLDER = "rlsys-adapter"
ROOM = 8
"""Adapters of which size must fit: those of running versions, and what others put there."""


@dataclass(frozen=True)
class AdapterSlots:
    """Room for adapters in an engine."""

    rank: int
    count: int  # versions that requests may run under at once
    loaded: str | None = None  # an adapter's folder that belongs to the weights of `model.path`
    quantization: str | None = None  # of the engine's own weights

    def arguments(self) -> dict[str, Any]:
        """The engine's options."""
        rank = next((rank for rank in RANKS if rank >= self.rank), self.rank)
        arguments = {
            "enable_lora": True,
            "max_loras": self.count,
            "max_cpu_loras": self.count + 1,
            "max_lora_rank": rank,
        }
        return arguments if self.quantization is None else arguments | {"quantization": self.quantization}


class Adapters:
    """What an engine of this worker serves, version by version.

    vLLM reads adapters from files: they lie in memory, and are gone with their version.
    """

    def __init__(self, engine: Any, who: str) -> None:
        self._engine = engine
        self._who = who
        remove_orphans()
        self._folder: Path | None = None  # made when it is known how much it must hold
        self._requests: dict[int, Any] = {}  # by version; vLLM's ids count from 1
        self._num_running: Counter[int] = Counter()
        self._num_added = 0
        self.version: int | None = None

    async def add(self, adapter: PackedAdapter, policy_version: int) -> None:
        """Serve a version from now on; requests that run go on under the one they began with.

        Raises WorkerError unless the engine holds every matrix as it was sent.
        """
        if self._folder is None:
            self._folder = make_folder(adapter.file.nbytes)
        folder = self._folder / f"version-{policy_version}"
        try:
            adapter.write(folder)
            await self.load(folder, policy_version, adapter.sums)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    async def load(self, folder: Path, policy_version: int, expected: Sums | None = None) -> None:
        """The same from a folder."""
        from vllm.lora.request import LoRARequest

        self._num_added += 1
        # A name of its own: prefixes in the cache belong to it.
        request = LoRARequest(f"{self._who}-version-{policy_version}", self._num_added, str(folder))
        await self._engine.add_lora(request)
        if expected is not None:
            for found in await self._engine.collective_rpc("adapter_sums", args=(request.lora_int_id,)):
                check_sums(expected, found, f"{self._who}, policy version {policy_version}")
        self._requests[policy_version] = request
        before, self.version = self.version, policy_version
        if before is not None:
            await self._retire(before)

    def begin(self) -> tuple[int, Any]:
        """A request starts: its version, and what vLLM is to be told."""
        assert self.version is not None
        self._num_running[self.version] += 1
        return self.version, self._requests[self.version]

    async def end(self, policy_version: int) -> None:
        """It has ended, however."""
        self._num_running[policy_version] -= 1
        if policy_version != self.version:
            await self._retire(policy_version)

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _retire(self, policy_version: int) -> None:
        if self._num_running[policy_version] or policy_version not in self._requests:
            return
        request = self._requests.pop(policy_version)
        del self._num_running[policy_version]
        await self._engine.remove_lora(request.lora_int_id)
        if self._folder is not None:
            shutil.rmtree(self._folder / f"version-{policy_version}", ignore_errors=True)


def make_folder(num_bytes: int) -> Path:
    """For adapters of that size: in memory where there is ample room, else where temporary files go."""
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM * num_bytes
    return Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=MEMORY if roomy else None))


def _prefix() -> str:
    """Of machine and container: another one's process ids say nothing here, though it may share the folder."""
    namespace = Path("/proc/self/ns/pid")
    container = namespace.stat().st_ino if namespace.exists() else 0
    return f"{FOLDER}-{socket.gethostname()}-{container}-"


def remove_orphans() -> None:
    """Adapters of workers that were killed: nobody else would remove them."""
    prefix = _prefix()
    for folder in [*MEMORY.glob(f"{prefix}*"), *Path(tempfile.gettempdir()).glob(f"{prefix}*")]:
        owner = folder.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
