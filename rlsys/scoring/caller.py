"""What reward functions find of the shell that the run was started in, on every node of a cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

# Variables of a machine, a process or a library's start, which another node's must not take over.
MACHINE = (
    "RAY_",
    "CUDA_",
    "NVIDIA_",
    "LD_",
    "OMP_",
    "KMP_",
    "MKL_",
    "GLOO_",
    "NCCL_",
    "TORCH",
    "PYTHON",
    "SLURM_",
    "SSH_",
)


@dataclass(frozen=True)
class Caller:
    """The driver's environment. It travels as an argument: Ray shows a worker's variables."""

    environment: Mapping[str, str] = field(repr=False)

    @classmethod
    def here(cls) -> Caller:
        """Return this process's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith((*MACHINE, "RLSYS_RUN_TAG"))}
        return cls(kept)

    def apply(self) -> None:
        """Give this process, and what it starts, the variables that it lacks."""
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)
