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
FOLDER = "RLSYS_CALLER_FOLDER"  # environment of a reward's process: a folder whose modules it finds, after all others


@dataclass(frozen=True)
class Caller:
    """The driver's working directory and environment. They travel as an argument: Ray shows a worker's variables."""

    folder: str
    environment: Mapping[str, str] = field(repr=False)

    @classmethod
    def here(cls) -> Caller:
        """Return this process's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith((*MACHINE, "RLSYS_RUN_TAG"))}
        return cls(os.getcwd(), kept)

    def apply(self) -> None:
        """Give this process, and what it starts, the variables that it lacks, and name the folder."""
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)
        os.environ[FOLDER] = self.folder
