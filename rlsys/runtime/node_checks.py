"""Checks of the machine that a process runs on: what Ray and workers need of it, whatever the run is.

They take milliseconds and change nothing. Each returns a `Finding`; `node_findings` calls them all. A cluster's nodes
run them in a task each (`rlsys.runtime.survey`).
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import psutil

from rlsys.config.paths import nearest_existing
from rlsys.errors import ConfigError
from rlsys.runtime.findings import Finding, Level, found_by
from rlsys.runtime.limits import Limits, process_limit
from rlsys.runtime.proxies import LOOPBACK

GB = 1e9
# The longest name of Ray's folder in bytes: a session's socket adds 64, as in
# /session_2026-01-02_03-04-05_123456_4194304/sockets/plasma_store, and Linux takes 107.
MAX_TEMP_DIR = 107 - 64
# The smallest object store that `rlsys.runtime.cluster` asks for; with less in /dev/shm Ray puts it on the disk.
MIN_SHM = 128 * 2**20
MIN_FREE_DISK = 2 * 10**9  # logs of a Ray session and what the compilers of PyTorch and vLLM write
FULL_DISK = 0.95  # from here on Ray refuses to put objects on the disk
# Of one run with five workers, measured: raylet and workers open 40 to 120 files each, and have about 500 threads.
MIN_FILES, FEW_FILES = 256, 1024
MIN_THREADS, FEW_THREADS = 300, 1500
# Where vLLM, PyTorch and Hugging Face's libraries keep caches; the others are below HOME unless they are set.
CACHES = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR")


def node_findings(*, starts_ray: bool) -> list[Finding]:
    """Check the machine that this process runs on, and with `starts_ray` the folder that a Ray started here takes."""
    checks: list[Callable[[], Finding]] = [cpus, memory, shared_memory, temp_disk, loopback_port]
    checks += [open_files, threads, home, proxies]
    return [check() for check in ([temp_dir, *checks] if starts_ray else checks)]


def cpus() -> Finding:
    """Return the cores that processes may use."""
    limits = Limits.here()
    less = f" of the machine's {limits.host_cores}" if limits.cores < limits.host_cores else ""
    return Finding("CPUs", Level.OK, f"{limits.cores:g} cores{less}")


def memory() -> Finding:
    """Return the memory that processes may use."""
    limits = Limits.here()
    less = limits.memory < limits.host_memory
    of = f" (the limit of a control group; the machine has {limits.host_memory / GB:.1f})" if less else ""
    return Finding("memory", Level.OK, f"{limits.free_memory / GB:.1f} GB free of {limits.memory / GB:.1f}{of}")


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Check that Ray's object store fits into shared memory."""
    name = "shared memory"
    if not folder.is_dir():
        return Finding(name, Level.WARN, f"there is no {folder}", "Ray's object store goes to the disk and is slow")
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GB:.2f} GB free of {usage.total / GB:.2f} in {folder}"
    if usage.free < 2 * MIN_SHM:  # the store takes half of what is free
        return Finding(name, Level.WARN, found, "give a container more, as docker run --shm-size=2g, or remove files")
    return Finding(name, Level.OK, found)


def ray_folder() -> tuple[Path, str]:
    """Return the folder of Ray's sessions, and the environment variable that moves it."""
    source = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "RAY_TMPDIR")
    return Path(os.environ.get(source, "/tmp")) / "ray", source


def check_temp_dir() -> str:
    """Return where Ray puts its session's files; raise ConfigError when it could not."""
    folder, source = ray_folder()
    remedy = f"set the environment variable {source} to a folder of yours with a short name, as /tmp/me"
    if len(os.fsencode(folder)) > MAX_TEMP_DIR:
        raise ConfigError(
            f"Ray's folder {folder} has a name of more than {MAX_TEMP_DIR} bytes, and the sockets in it could not be "
            f"opened: {remedy}"
        )
    if not is_writable(folder):
        there = nearest_existing(folder)
        raise ConfigError(f"Ray cannot write its session's files in {folder} (no permission for {there}): {remedy}")
    return f"Ray's sessions go to {folder}"


def temp_dir() -> Finding:
    """Check the folder of Ray's sessions: its name, permission and owner."""
    name = "Ray's folder"
    finding, (folder, source) = found_by(name, check_temp_dir), ray_folder()
    if finding.level == Level.OK and folder.exists() and folder.stat().st_uid not in (os.getuid(), 0):
        owner = folder.stat().st_uid
        return Finding(
            name,
            Level.WARN,
            f"{folder} belongs to the user {owner}, who can remove or replace this run's sockets",
            f"set the environment variable {source} to a folder of yours with a short name, as /tmp/me",
        )
    return finding


def temp_disk() -> Finding:
    """Check that the disk of Ray's sessions has room."""
    return disk("disk for sessions", nearest_existing(ray_folder()[0]))


def disk(name: str, folder: Path) -> Finding:
    """Check that the disk of a folder has room."""
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GB:.1f} GB free of {usage.total / GB:.1f} at {folder}"
    if usage.free < MIN_FREE_DISK or usage.used / usage.total >= FULL_DISK:
        return Finding(name, Level.WARN, found, "free some space, or choose a folder on another disk")
    return Finding(name, Level.OK, found)


def loopback_port() -> Finding:
    """Check that a socket can listen on this machine's own address."""

    def check() -> str:
        try:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                return f"a socket listens on 127.0.0.1:{listener.getsockname()[1]}"
        except OSError as error:
            raise ConfigError(
                f"no socket can listen on 127.0.0.1 ({error.strerror}): bring the interface `lo` up, or free ports of "
                "the range in /proc/sys/net/ipv4/ip_local_port_range"
            ) from error

    return found_by("ports", check)


def open_files() -> Finding:
    """Check the limit of open files per process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _limit("open files", "ulimit -n", _value(soft), _value(hard), (MIN_FILES, FEW_FILES))


def threads() -> Finding:
    """Check how many more processes and threads this user may start."""
    soft, hard = (_value(limit) for limit in resource.getrlimit(resource.RLIMIT_NPROC))
    left = [] if (group := process_limit()) is None else [float(group)]
    if os.getuid() != 0:  # the limit does not hold for root
        left.append(soft - _own_threads())
    return _limit("threads", "ulimit -u", min(left, default=float("inf")), hard, (MIN_THREADS, FEW_THREADS))


def _own_threads() -> int:
    """Count the threads of this user's processes."""
    count = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == os.getuid():
                count += process.num_threads()
    return count


def _value(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else float(limit)


def _limit(name: str, command: str, left: float, hard: float, needs: tuple[int, int]) -> Finding:
    least, enough = needs
    if left >= enough:
        return Finding(name, Level.OK, "no limit" if left == float("inf") else f"{left:.0f} possible")
    first = "" if hard >= enough else f"raise the hard limit (it is {hard:.0f}), then "
    level = Level.FAIL if left < least else Level.WARN
    return Finding(
        name, level, f"{left:.0f} possible, a run may need {enough}", f"{first}{command} {enough} in the shell"
    )


def home() -> Finding:
    """Check that libraries can write their caches: below the home folder, or where a variable puts them."""
    folders = {name: Path(os.environ[name]).expanduser() for name in CACHES if os.environ.get(name)}
    folders.setdefault("HOME", Path("~").expanduser())
    closed = {name: folder for name, folder in folders.items() if not is_writable(folder)}
    if not closed:
        return Finding("home", Level.OK, f"{folders['HOME']} can be written")
    found = " and ".join(f"{folder} ({name})" for name, folder in closed.items())
    remedy = f"set {' and '.join(closed)} to a folder of yours"
    return Finding("home", Level.WARN, f"{found} cannot be written, where libraries keep caches", remedy)


def is_writable(folder: Path) -> bool:
    """Return whether this process can write a folder, or make it where it is not there yet."""
    there = nearest_existing(folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def proxies() -> Finding:
    """Name the proxies of the environment, which a run exempts this machine's own addresses from."""
    given = [
        name
        for name in ("http_proxy", "https_proxy", "all_proxy")
        if os.environ.get(name.upper()) or os.environ.get(name)
    ]
    if not given:
        return Finding("proxies", Level.OK, "none")
    exempt = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    missing = [host for host in LOOPBACK if host not in map(str.strip, exempt) and "*" not in exempt]
    if not missing:
        return Finding("proxies", Level.OK, f"{', '.join(given)}; not for {', '.join(LOOPBACK)}")
    return Finding(
        "proxies",
        Level.NOTE,
        f"{', '.join(given)} also for {', '.join(missing)}; a run exempts these by itself, and other programs need "
        "no_proxy",
    )
