"""The command line that runs a program in its sandbox.

From the outside in: `timeout` ends it even if the process that watches it was killed; bubblewrap sets up namespaces,
mounts and the filter of system calls; `prlimit` sets the limits that the kernel enforces for each process.
"""

from __future__ import annotations

import errno
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
GRACE_S = 1  # seconds that `timeout` waits beyond the watcher's own deadline
# System calls that fail: those that programs here never need, and those by which programs have broken out of sandboxes.
FORBIDDEN = (
    *("memfd_create", "memfd_secret", "shmget", "shmat", "msgget", "mq_open", "semget"),  # memory that no limit counts
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "open_tree", "move_mount"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "open_by_handle_at"),
    # Sockets hold memory that no limit counts, and those of virtual machines (AF_VSOCK) know no network namespaces.
    # What event loops need is `socketpair`.
    "socket",
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl", "add_key", "request_key"),
    *("init_module", "finit_module", "kexec_load", "reboot", "swapon", "swapoff", "acct", "quotactl"),
)
CLONE_THREAD = 0x10000
# With this error the C library uses `clone` instead of `clone3`, and a filter can see the flags of `clone`.
NO_SUCH_CALL = errno.ENOSYS


def sandbox_command(
    program: Program, limits: Limits, files: Mapping[str, int], filter_fd: int, status_fd: int
) -> list[str]:
    """Return the whole command line.

    Args:
        program: the program to run.
        limits: the program's limits.
        files: the program's files, as names and open file descriptors.
        filter_fd: an open descriptor of the filter of system calls.
        status_fd: an open descriptor for bubblewrap's report.
    """
    command = ["timeout", "-s", "KILL", str(math.ceil(limits.wall_s) + GRACE_S), shutil.which("bwrap") or "bwrap"]
    # No network, no other processes, no environment; and the sandbox ends with the process that started it. In a new
    # session the program has no controlling terminal, so it cannot type into ours.
    command += ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--seccomp", str(filter_fd), "--json-status-fd", str(status_fd)]
    # What programs need of the system, all of it read-only.
    for path in dict.fromkeys((*SYSTEM, base_prefix(), *_tools(program))):
        command += _bound(path)
    # The only writable folders are in memory, with a size limit; everything else is read-only from here on.
    command += ["--dev", "/dev", "--size", str(limits.disk_mib * 2**20), "--tmpfs", HOME, "--chdir", HOME]
    command += ["--size", str(2**20), "--tmpfs", "/dev/shm", "--remount-ro", "/dev", "--remount-ro", "/"]
    # 65534 is nobody, inside the namespace only: to the kernel's limits the program is still the user who runs us.
    command += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    command += ["--setenv", "HOME", HOME, "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8"]
    for name, descriptor in files.items():
        command += ["--file", str(descriptor), f"{HOME}/{name}"]
    # One second after SIGXCPU the kernel sends SIGKILL. --nproc counts threads too.
    command += ["--", "prlimit", f"--cpu={limits.cpu_s}:{limits.cpu_s + 1}", "--core=0", "--nofile=64"]
    command += [f"--fsize={limits.disk_mib * 2**20}", f"--nproc={limits.processes + limits.threads}"]
    if not program.reserves_memory:  # else resident memory is watched from outside
        command.append(f"--as={limits.memory_mib * 2**20}")
    return [*command, "--", *program.command]


def python() -> str:
    """Return the path of this interpreter outside of any virtual environment."""
    return str(Path(base_prefix(), "bin", f"python{sys.version_info.major}.{sys.version_info.minor}"))


def base_prefix() -> str:
    """Return where this interpreter is installed, with links followed: only their targets are bound in the sandbox."""
    return os.path.realpath(sys.base_prefix)


@cache
def filter_bytes(*, may_fork: bool) -> bytes:
    """Return the filter of system calls in the kernel's format.

    Args:
        may_fork: whether the program may start processes; threads are always allowed.

    Raises:
        ImportError, OSError, RuntimeError: libseccomp is missing or does not work.
    """
    import pyseccomp

    made, refuse = pyseccomp.SyscallFilter(pyseccomp.ALLOW), pyseccomp.ERRNO(errno.EPERM)
    for name in FORBIDDEN:
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:  # some calls do not exist on every architecture
            made.add_rule(refuse, name)
    if not may_fork:
        for name in ("fork", "vfork"):
            if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:
                made.add_rule(refuse, name)
        # A clone that makes a thread is allowed, any other is not. The flags of clone3 are in memory, which filters
        # cannot read, so it must not exist.
        made.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, CLONE_THREAD, 0))
        made.add_rule(pyseccomp.ERRNO(NO_SUCH_CALL), "clone3")
    descriptor = os.memfd_create("filter")
    with open(descriptor, "w+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


def _tools(program: Program) -> list[str]:
    """Return the program's command if it is outside of the system's folders."""
    path = program.command[0] if os.path.isabs(program.command[0]) else ""
    inside = path.startswith((*(f"{folder}/" for folder in SYSTEM), f"{base_prefix()}/"))
    return [] if not path or inside else [path]


def _bound(path: str) -> list[str]:
    """Return the options that make a path readable in the sandbox; a link stays a link."""
    if os.path.islink(path):
        return ["--symlink", os.readlink(path), path]
    # "/" would be an interpreter installed there, and would show the program the whole machine.
    return ["--ro-bind", path, path] if os.path.exists(path) and path != "/" else []
