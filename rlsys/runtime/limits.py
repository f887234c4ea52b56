"""Cores and memory that this process may use: the machine's, or less where a control group (a container) limits them.

Reads version 1 and 2 of Linux's control groups. A limit holds for everything below the group that has it, so the
smallest on the way to the root counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

UNLIMITED = 2**60  # version 1 writes "no limit" as a number near 2**63
# Of version 2 and 1: the files of the limit and of what is used, and the line of memory.stat with cached files.
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
ROOT = Path("/")


@dataclass(frozen=True)
class Limits:
    """What one machine gives to this process.

    Attributes:
        cores: cores' worth of time: those that the scheduler may choose, or a smaller quota.
        host_cores: cores of the machine.
        memory: bytes: the machine's, or a smaller limit.
        free_memory: bytes of `memory` that are free, or hold nothing but cached files.
        host_memory: bytes of the machine.
    """

    cores: float
    host_cores: int
    memory: int
    free_memory: int
    host_memory: int

    @classmethod
    def here(cls, root: Path = ROOT) -> Limits:
        """Read those of this process; `root` is the folder with `proc` and `sys`."""
        machine = psutil.virtual_memory()
        memory, free = machine.total, machine.available
        for limit, used in _memory_limits(root):
            memory, free = min(memory, limit), min(free, max(limit - used, 0))
        return cls(_cores(root), os.cpu_count() or 1, memory, free, machine.total)


def usable_cores() -> int:
    """Return how many threads of this process can compute at once, at least 1."""
    return max(1, round(_cores(ROOT)))


def process_limit(root: Path = ROOT) -> int | None:
    """Return how many more processes and threads this process's control groups allow; None where they set no limit."""
    left = []
    for folder in _folders("pids", root):
        limit, used = _number(folder / "pids.max"), _number(folder / "pids.current")
        if limit is not None and used is not None:
            left.append(max(limit - used, 0))
    return min(left, default=None)


def _cores(root: Path) -> float:
    return min([float(len(os.sched_getaffinity(0))), *_quotas(root)])


def _quotas(root: Path) -> Iterator[float]:
    for folder in _folders("cpu", root):
        text = _text(folder / "cpu.max").split()  # version 2: quota and period in microseconds, or "max"
        if len(text) == 2 and text[0] != "max":
            yield int(text[0]) / int(text[1])
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and quota > 0:  # version 1: -1 is none
            yield quota / period


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit of each group that has one, and what is used of it without cached files, in bytes."""
    for folder in _folders("memory", root):
        for limit_name, used_name, cached_name in MEMORY_FILES:
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is None or used is None or limit >= UNLIMITED:
                continue
            stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
            yield limit, max(used - int(stat.get(cached_name, 0)), 0)


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield this process's groups of a controller, up to the root.

    Inside a container the path of the group is often the host's, where only the root of the tree is mounted: folders
    that are not there are left out.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        base = root / "sys/fs/cgroup" / names
        if names and not base.is_dir():  # mounted by the controller's own name
            base = root / "sys/fs/cgroup" / controller
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_dir():
                yield folder
            if folder == base:
                break


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(file: Path) -> str:
    """Return a file's text; empty where the system has no such file or shows it to others only."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
