"""Limits of control groups, from files as the kernel writes them, in both versions."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from rlsys.runtime.limits import Limits, process_limit, usable_cores


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


def test_without_control_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    limits, machine = Limits.here(tmp_path), psutil.virtual_memory()
    assert (limits.cores, limits.host_cores) == (64, 64)
    assert limits.memory == limits.host_memory == machine.total
    assert process_limit(tmp_path) is None


def test_version_2_the_smallest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/pod/memory.max": "2000000000\n",
            "sys/fs/cgroup/pod/memory.current": "1500000000\n",
            "sys/fs/cgroup/pod/memory.stat": "anon 1\ninactive_file 700000000\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/memory.current": "5\n",
            "sys/fs/cgroup/pod/box/pids.max": "100\n",
            "sys/fs/cgroup/pod/box/pids.current": "30\n",
        },
    )
    limits = Limits.here(root)
    assert limits.cores == 1.5
    assert limits.memory == 2_000_000_000
    assert limits.free_memory == 1_200_000_000  # files that can be dropped are free
    assert limits.host_memory == psutil.virtual_memory().total
    assert process_limit(root) == 70


def test_version_1_inside_of_a_container_only_the_root_is_mounted(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "400000000\n",
            "sys/fs/cgroup/memory/memory.stat": "cache 2\ntotal_inactive_file 100000000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    limits = Limits.here(root)
    assert (limits.cores, limits.memory, limits.free_memory) == (2, 1_000_000_000, 700_000_000)


def test_version_1_writes_no_limit_as_a_large_number(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/\n3:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "400000000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    limits = Limits.here(root)
    assert (limits.cores, limits.memory) == (64, limits.host_memory)


def test_threads_follow_the_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}
    monkeypatch.setattr("rlsys.runtime.limits.ROOT", write(tmp_path, files))
    assert usable_cores() == 3
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("20000 100000\n")
    assert usable_cores() == 1
