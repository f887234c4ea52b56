"""The command line that puts a program into its sandbox.

From the outside in: `timeout` ends it even when whoever watches it has been killed; bubblewrap makes namespaces, mounts
and the filter of system calls; `prlimit` sets what the kernel keeps for each process.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from rlsys.sandbox.program import Limits, Program

HOME = "/sandbox"
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/alternatives", "/etc/ld.so.cache")
GRACE_S = 1
"""That the outermost process waits beyond the watcher's own deadline."""
FORBIDDEN = (
    *("memfd_create", "memfd_secret", "shmget", "shmat", "msgget", "semget"),  # memory that no limit counts
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "open_tree", "move_mount"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp"),
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl", "add_key", "request_key"),
    *("init_module", "finit_module", "kexec_load", "reboot", "swapon", "swapoff", "acct", "quotactl"),
)
"""System calls that fail: what programs here never need, and what others have broken out with."""
CLONE_THREAD = 0x10000
NO_SUCH_CALL = 38
"""ENOSYS: the C library then uses `clone`, whose flags a filter can see, in place of `clone3`."""


def sandbox_command(
    program: Program, limits: Limits, files: Mapping[str, int], filter_fd: int, status_fd: int
) -> list[str]:
    """All of it. `files`, the filter and bubblewrap's report are open descriptors."""
    command = ["timeout", "-s", "KILL", str(math.ceil(limits.wall_s) + GRACE_S), shutil.which("bwrap") or "bwrap"]
    command += ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--seccomp", str(filter_fd), "--json-status-fd", str(status_fd)]
    for path in dict.fromkeys((*SYSTEM, base_prefix(), *_tools(program))):
        command += _bound(path)
    command += ["--dev", "/dev", "--size", str(limits.disk_mib * 2**20), "--tmpfs", HOME, "--chdir", HOME]
    command += ["--size", str(2**20), "--tmpfs", "/dev/shm", "--remount-ro", "/dev", "--remount-ro", "/"]
    command += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    command += ["--setenv", "HOME", HOME, "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8"]
    for name, descriptor in files.items():
        command += ["--file", str(descriptor), f"{HOME}/{name}"]
    command += ["--", "prlimit", f"--cpu={limits.cpu_s}:{limits.cpu_s + 1}", "--core=0", "--nofile=64"]
    command += [f"--fsize={limits.disk_mib * 2**20}", f"--nproc={limits.processes + limits.threads}"]
    if not program.reserves_memory:
        command.append(f"--as={limits.memory_mib * 2**20}")
    return [*command, "--", *program.command]


def python() -> str:
    """This interpreter, outside any virtual environment."""
    return str(Path(base_prefix(), "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))


def base_prefix() -> str:
    """Where this interpreter is installed; a link is followed, since only what it leads to is bound."""
    return os.path.realpath(sys.base_prefix)


@cache
def filter_bytes(*, may_fork: bool) -> bytes:
    """The filter of system calls as the kernel takes it. Raises OSError or RuntimeError where libseccomp is missing."""
    import pyseccomp

    made, refuse = pyseccomp.SyscallFilter(pyseccomp.ALLOW), pyseccomp.ERRNO(1)
    for name in FORBIDDEN:
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:  # not every machine's table has every one
            made.add_rule(refuse, name)
    if not may_fork:
        for name in ("fork", "vfork"):
            if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:
                made.add_rule(refuse, name)
        made.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, CLONE_THREAD, 0))
        made.add_rule(pyseccomp.ERRNO(NO_SUCH_CALL), "clone3")
    descriptor = os.memfd_create("filter")
    with open(descriptor, "w+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


def _tools(program: Program) -> list[str]:
    """A command that lies outside the system's folders."""
    path = program.command[0] if os.path.isabs(program.command[0]) else ""
    inside = path.startswith((*(f"{folder}/" for folder in SYSTEM), f"{base_prefix()}/"))
    return [] if not path or inside else [path]


def _bound(path: str) -> list[str]:
    """Read-only in the sandbox; a link stays a link."""
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    return ["--ro-bind", path, path] if os.path.exists(path) and path != "/" else []
