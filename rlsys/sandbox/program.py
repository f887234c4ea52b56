"""What goes into a sandbox, what it may use, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

ProgramOutcome = Literal["ok", "exit", "signal", "timeout", "memory", "processes", "output", "refused"]
"""`ok`: exit status 0. `exit`, `signal`: another status, or a signal of its own. `timeout`: of the wall clock or of CPU
time. `memory`, `processes`, `output`: that limit was reached. `refused`: the sandbox itself could not be made."""


@dataclass(frozen=True)
class Program:
    """A command and the files it finds in its directory, which is otherwise empty."""

    command: Sequence[str]
    files: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""
    reserves_memory: bool = False  # address space far beyond what it uses, as JavaScript engines do


@dataclass(frozen=True)
class Limits:
    """Of one program with everything it starts."""

    wall_s: float = 5.0
    cpu_s: int = 5  # each process
    memory_mib: int = 512  # address space of each process, and resident memory of all
    disk_mib: int = 16  # of its directory, which is memory too
    processes: int = 1  # more only where we are not root, whom the kernel counts no processes of
    threads: int = 64  # of all of them
    output_kib: int = 256  # of each of the two streams


@dataclass(frozen=True)
class Result:
    """How a program ended."""

    outcome: ProgramOutcome
    exit_status: int | None  # None where it was killed
    stdout: str
    stderr: str
    seconds: float
