"""The memory that the processes of a run hold on the driver's machine, and what is free there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlsys.runtime.actors import own_node, process_of
from rlsys.runtime.limits import Limits

GIB = 2**30
PROC = Path("/proc")


class MemoryUse:
    """The samples of a run's memory: of the driver, and of each role the worker that holds the most.

    Only memory of a process's own counts (anonymous pages), with its descendants'; shared pages and mapped files do
    not. Workers on other machines are left out.
    """

    def __init__(self, workers: Mapping[str, Any]) -> None:
        """Sample these workers, handles by names such as `rollout/0`; the mapping may change later."""
        self._workers = workers
        self._pids: dict[str, int | None] = {}  # by Ray's id of the worker; None on another machine

    def metrics(self) -> dict[str, float]:
        """Return `memory/<role>_gib` and `memory/free_gib` as they are now."""
        children = _children()
        most = {"driver": own_bytes([os.getpid()])}
        for name, handle in list(self._workers.items()):
            pid = self._pid(handle)
            if pid is not None:
                role = name.partition("/")[0]
                most[role] = max(most.get(role, 0), own_bytes(_family(pid, children)))
        free = Limits.here().free_memory
        return {f"memory/{role}_gib": held / GIB for role, held in most.items()} | {"memory/free_gib": free / GIB}

    def _pid(self, handle: Any) -> int | None:
        """Return a worker's process id, or None for one on another machine or one that has not started yet."""
        actor_id = handle._actor_id.hex()
        if actor_id not in self._pids:
            found = process_of(handle)
            if found is None:
                return None
            node, pid = found
            self._pids[actor_id] = pid if node == own_node() else None
        return self._pids[actor_id]


def own_bytes(pids: Iterable[int]) -> int:
    """Return the anonymous memory that these processes hold together; one that has ended holds none."""
    total = 0
    for pid in pids:
        try:
            status = (PROC / str(pid) / "status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
    return total


def _children() -> dict[int, list[int]]:
    """Return the process ids of every process's children."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            # The command in brackets may hold spaces and brackets itself.
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    return children


def _family(pid: int, children: Mapping[int, list[int]]) -> list[int]:
    family = [pid]
    for member in family:  # which grows meanwhile
        family += children.get(member, [])
    return family
