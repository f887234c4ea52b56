"""Memory of processes with their descendants, and what is free."""

from __future__ import annotations

import os
import subprocess
import sys

from rlsys.runtime.memory_use import GIB, MemoryUse, _children, _family, own_bytes

MIB = 2**20
# A process that starts one that holds 64 MiB, and waits for it.
HOLDS = f"import sys; held = b'x' * (64 * {MIB}); print('ready', flush=True); sys.stdin.read()"
STARTS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDS!r}])"


def test_a_process_counts_with_its_descendants() -> None:
    process = subprocess.Popen([sys.executable, "-c", STARTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        family = _family(process.pid, _children())
        assert len(family) == 2
        assert own_bytes(family) > 64 * MIB > own_bytes([process.pid])
    finally:
        process.communicate()
    assert own_bytes(family) == 0  # ended meanwhile


def test_a_run_s_own_process_and_what_is_free_are_always_there() -> None:
    found = MemoryUse({}).metrics()
    assert found.keys() == {"memory/driver_gib", "memory/free_gib"}
    assert 0.01 < found["memory/driver_gib"] < 2 * own_bytes([os.getpid()]) / GIB
    assert found["memory/free_gib"] > 0
