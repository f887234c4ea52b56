"""The memory of this machine's GPUs, from the driver's own program: asking PyTorch would take some of it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

MIB = 2**20
COMMAND = ("nvidia-smi", "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits")
LIMIT_S = 20.0  # the first call may load the driver


@dataclass(frozen=True)
class Gpu:
    """Bytes of one GPU."""

    total: int
    free: int


def fullest_gpu() -> Gpu | None:
    """Return the visible GPU with least free memory; None where no driver answers, or not with numbers."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = [*COMMAND, *(["-i", visible] if visible else [])]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout
        gpus = [Gpu(*(MIB * int(number) for number in line.split(","))) for line in answer.splitlines()]
    except (OSError, subprocess.SubprocessError, ValueError):  # "[N/A]": memory that GPU and host share
        return None
    return min(gpus, key=lambda gpu: gpu.free, default=None)
