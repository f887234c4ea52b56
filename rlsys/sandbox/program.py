"""The records of a sandbox: the program, its limits, and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

# `ok`: exit status 0. `exit`, `signal`: another status, or ended by a signal. `timeout`: the limit of wall-clock or CPU
# time was reached. `memory`, `processes`, `output`: that limit was reached. `refused`: the sandbox could not be made.
ProgramOutcome = Literal["ok", "exit", "signal", "timeout", "memory", "processes", "output", "refused"]


@dataclass(frozen=True)
class Program:
    """A command, its standard input, and the only files in its working directory."""

    command: Sequence[str]
    files: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""
    reserves_memory: bool = False  # it reserves far more address space than it uses, as JavaScript engines do


@dataclass(frozen=True)
class Limits:
    """Limits on what one program may use, with everything that it starts."""

    wall_s: float = 5.0
    cpu_s: int = 5  # per process
    # Address space per process; and of all together, resident memory and what the kernel holds for them.
    memory_mib: int = 512
    disk_mib: int = 16  # its working directory, which is in memory too
    processes: int = 1  # more than 1 only if we are not root, whose processes the kernel does not limit
    threads: int = 64  # in all processes together
    output_kib: int = 256  # per stream: standard output and standard error


@dataclass(frozen=True)
class Result:
    """The end of a program, with the output until then."""

    outcome: ProgramOutcome
    exit_status: int | None  # None if it was killed at a limit
    stdout: str
    stderr: str
    seconds: float
