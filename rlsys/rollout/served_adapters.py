"""The low-rank adapters that a rollout worker serves: one per policy version, until its last request has ended."""

from __future__ import annotations

import asyncio
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

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the ranks that vLLM can reserve room for
MEMORY = Path("/dev/shm")
FOLDER = "rlsys-adapter"
# Adapters that must fit into memory for it to be used: those of running versions, and what others put there.
ROOM = 8


@dataclass(frozen=True)
class AdapterSlots:
    """Room that an engine keeps for adapters."""

    rank: int
    count: int  # versions that requests may run under at once
    layers: tuple[str, ...]  # last parts of the names of the layers with adapters; empty: any
    loaded: str | None = None  # folder of an adapter that belongs to the weights of `model.path`
    quantization: str | None = None  # how the engine holds the base model's weights

    def arguments(self) -> dict[str, Any]:
        """Return the engine's options."""
        # Preflight refuses ranks above the largest; any other caller gets vLLM's own error.
        rank = next((rank for rank in RANKS if rank >= self.rank), self.rank)
        arguments: dict[str, Any] = {
            "enable_lora": True,
            "max_loras": self.count,
            # One more than may run at once: a version is loaded before the one that it replaces is removed. Without
            # room vLLM would drop the oldest and read it from its file again.
            "max_cpu_loras": self.count + 1,
            "max_lora_rank": rank,
        }
        if self.layers:
            # Otherwise vLLM prepares every layer for adapters, experts too, which its CPU kernels refuse.
            arguments["lora_target_modules"] = list(self.layers)
        return arguments if self.quantization is None else arguments | {"quantization": self.quantization}


class Adapters:
    """The adapters that this worker's engine serves, one per policy version.

    vLLM reads adapters from files. They are written to memory and removed with their version.
    """

    def __init__(self, engine: Any, who: str) -> None:
        self._engine = engine
        self._who = who
        remove_orphans()
        self._folder: Path | None = None  # made with the first adapter, whose size decides where
        self._requests: dict[int, Any] = {}  # by version; vLLM's ids count from 1
        self._num_running: Counter[int] = Counter()
        self._num_added = 0
        self.version: int | None = None

    async def add(self, adapter: PackedAdapter, policy_version: int) -> None:
        """Serve a version from now on; running requests keep the version that they began with.

        A version that is served already comes again when another engine joins; there is nothing to do.

        Raises:
            WorkerError: the engine does not hold every matrix as it was sent.
        """
        if policy_version == self.version:
            return
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
        """Serve an adapter from a folder; `expected` are the sums to check it by."""
        from vllm.lora.request import LoRARequest

        self._num_added += 1
        # A new name per version: vLLM keys cached prefixes by it.
        request = LoRARequest(f"{self._who}-version-{policy_version}", self._num_added, str(folder))
        await self._engine.add_lora(request)
        if expected is not None:
            for found in await self._engine.collective_rpc("adapter_sums", request.lora_int_id):
                check_sums(expected, found, f"{self._who}, policy version {policy_version}")
        self._requests[policy_version] = request
        before, self.version = self.version, policy_version
        if before is not None:
            await self._retire(before)

    def begin(self) -> tuple[int, Any]:
        """Count a request that starts; returns its policy version, and the adapter to give to vLLM."""
        assert self.version is not None
        self._num_running[self.version] += 1
        return self.version, self._requests[self.version]

    async def end(self, policy_version: int) -> None:
        """Count a request that has ended."""
        self._num_running[policy_version] -= 1
        if policy_version != self.version:
            await self._retire(policy_version)

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _retire(self, policy_version: int) -> None:
        # `load` and the end of the version's last request may both come here; the second finds it gone.
        if self._num_running[policy_version] or policy_version not in self._requests:
            return
        request = self._requests.pop(policy_version)
        del self._num_running[policy_version]
        # Shielded: a request that is cancelled here would leave its adapter in the engine, and the files.
        await asyncio.shield(self._remove(request.lora_int_id, policy_version))

    async def _remove(self, lora_id: int, policy_version: int) -> None:
        await self._engine.remove_lora(lora_id)
        # Only what `add` wrote: an adapter of the user's (`model.adapter`) was read where it lies, and stays.
        if self._folder is not None:
            shutil.rmtree(self._folder / f"version-{policy_version}", ignore_errors=True)


def make_folder(num_bytes: int) -> Path:
    """Make a folder for adapters of that size: in memory if there is ample room, else among temporary files."""
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM * num_bytes
    return Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=MEMORY if roomy else None))


def _prefix() -> str:
    """Return a prefix per machine and container: others may share the folder, but not the numbers of processes."""
    namespace = Path("/proc/self/ns/pid")
    container = namespace.stat().st_ino if namespace.exists() else 0
    return f"{FOLDER}-{socket.gethostname()}-{container}-"


def remove_orphans() -> None:
    """Remove adapters of workers that were killed and could not do it themselves."""
    prefix = _prefix()
    for folder in [*MEMORY.glob(f"{prefix}*"), *Path(tempfile.gettempdir()).glob(f"{prefix}*")]:
        owner = folder.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
