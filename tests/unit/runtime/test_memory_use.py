"""Memory of processes with their descendants, and what is free, also in a container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rlsys.runtime.memory_use import GIB, MemoryUse, _children, _family, free, own_bytes

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


def test_a_container_s_limit_counts_without_what_it_can_drop(tmp_path: Path) -> None:
    whole = free(tmp_path)
    for name, text in (
        ("max", f"{90 * MIB}"),
        ("current", f"{70 * MIB}"),
        ("stat", f"anon 5\ninactive_file {8 * MIB}"),
    ):
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert free(tmp_path) == 28 * MIB < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert free(tmp_path) > GIB / 8
    old = tmp_path / "memory"
    old.mkdir()
    for name, text in (("limit_in_bytes", f"{30 * MIB}"), ("usage_in_bytes", f"{40 * MIB}"), ("stat", "cache 0")):
        (old / f"memory.{name}").write_text(text)
    assert free(tmp_path) == 0
