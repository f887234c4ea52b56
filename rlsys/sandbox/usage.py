"""What all processes of a sandbox use together, looked at from outside: the kernel's limits are per process."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlsys.sandbox.command import HOME
from rlsys.sandbox.program import Limits, ProgramOutcome

OWN_PROCESSES = 3  # not the program's, but counted with it: two of bubblewrap, and one to spare
# What the kernel holds for a program beside its resident memory; the contents of files have a limit of their own.
# A file, folder or link in memory: inode, name and cache of names, 0.7 to 1.4 KiB measured.
ENTRY_BYTES = 2 * 2**10
# One end of a socket pair: net.core.wmem_default, with its usual value.
SOCKET_BYTES = 208 * 2**10


@dataclass(frozen=True)
class Usage:
    """What all processes of a sandbox use together at one moment."""

    seen_at: float  # on the clock of `time.monotonic()`
    memory: int = 0  # bytes
    num_threads: int = 1
    cpu_s: float = 0.0  # of the process that used most: the limit is one per process

    def most_cpu_s(self, end: float) -> float:
        """Return the most CPU time that one process can have used at `end`: every thread may have run since."""
        return self.cpu_s + (end - self.seen_at) * self.num_threads

    def reached(self, limits: Limits) -> ProgramOutcome | None:
        """Return the limit that all processes of the sandbox exceed together, or None.

        Their number is bounded by the kernel already; counting here would be too slow against a program that starts
        processes without end.
        """
        if self.num_threads > limits.processes + limits.threads + OWN_PROCESSES:
            return "processes"
        return "memory" if self.memory > limits.memory_mib * 2**20 else None


def look(pid: int, now: float) -> Usage | None:
    """Look at the processes that `pid` started; None once they have ended, which says nothing of what they used."""
    memory, shared, count, cpu_s = 0, 0, 0, 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
                memory += child.memory_info().rss + _page_tables(child.pid)
                count += child.num_threads()
                times = child.cpu_times()
                cpu_s = max(cpu_s, times.user + times.system)
                shared = max(shared, _held_for_all(child.pid))  # the same for all that are inside already
    return Usage(now, memory + shared, count, cpu_s) if count else None


def _page_tables(pid: int) -> int:
    """Return the bytes of a process's page tables: reading untouched memory fills them without becoming resident."""
    found = re.search(r"^VmPTE:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0  # a process that is ending has none


def _held_for_all(pid: int) -> int:
    """Return the bytes that the kernel holds for the files and sockets of a process's sandbox; 0 if it is in none."""
    if os.stat(f"/proc/{pid}/root/").st_dev == os.stat("/").st_dev:
        return 0
    entries = 0
    for folder in (HOME, "/dev/shm"):
        of_folder = os.statvfs(f"/proc/{pid}/root{folder}")
        entries += of_folder.f_files - of_folder.f_ffree
    num_sockets = int(Path(f"/proc/{pid}/net/sockstat").read_text().split()[2])  # "sockets: used 2"
    return entries * ENTRY_BYTES + num_sockets * SOCKET_BYTES
