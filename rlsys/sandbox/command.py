"""The command line that runs a program in its sandbox.

From the outside in: `timeout` ends it even if the process that watches it was killed; bubblewrap sets up namespaces,
mounts and the filter of system calls; `setsid` gives the program a process group of its own; `prlimit` sets the limits
that the kernel enforces for each process.

Everything up to `setsid` stays in the process group of `timeout`, and in particular the namespace's first process does,
with which the kernel ends the program. So one signal to this group ends the sandbox at any moment of its life.
bubblewrap's --die-with-parent alone does not: its processes ask the kernel for it only after the setup, and a parent
that has ended before goes unnoticed.
"""

from __future__ import annotations

import errno
import fcntl
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
# System calls that fail: those that programs here never need, those by which programs have broken out of sandboxes, and
# those by which they can have the kernel hold memory that no limit counts.
FORBIDDEN = (
    *("memfd_create", "memfd_secret", "shmget", "shmat", "msgget", "mq_open", "semget", "vmsplice"),
    *("setxattr", "lsetxattr", "fsetxattr", "inotify_init", "inotify_init1", "fanotify_init"),
    "landlock_create_ruleset",
    *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "fsopen", "fsmount", "fspick"),
    *("open_tree", "move_mount", "mount_setattr"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "open_by_handle_at"),
    # Sockets hold memory too, and those of virtual machines (AF_VSOCK) know no network namespaces. Event loops need
    # `socketpair`: without the calls below its buffers stay small, and no socket is hidden inside another.
    *("socket", "bind", "connect", "listen", "accept", "accept4", "setsockopt", "sendmsg", "sendmmsg"),
    *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl", "add_key", "request_key"),
    *("init_module", "finit_module", "kexec_load", "reboot", "swapon", "swapoff", "acct", "quotactl"),
    *("personality", "modify_ldt", "syslog"),
)
# Calls that are newer than this list do not exist in the sandbox, as on an older kernel. Their numbers are the same on
# all architectures.
UNKNOWN_CALLS = range(452, 600)
# The flags of `clone` that make namespaces: mounts, cgroups, names, messages, users, processes, network.
CLONE_NEW = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
CLONE_FILES, CLONE_THREAD = 0x400, 0x10000
CLOSE_RANGE_UNSHARE = 2
# Commands of `fcntl`: larger pipes, and locks of ranges, of which the kernel keeps as many as a program asks for.
F_SETPIPE_SZ, LOCKS = 1031, (fcntl.F_SETLK, fcntl.F_SETLKW, 37, 38)  # 37, 38: F_OFD_SETLK, F_OFD_SETLKW
LOW = 0xFFFFFFFF  # of an argument the kernel reads these bits alone
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
    # No network, no other processes, no environment; and the sandbox ends with the process that started it. Not
    # --new-session: the namespace's first process would leave the group before the kernel ties it to its parent.
    command += ["--unshare-all", "--die-with-parent", "--clearenv"]
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
    # In a session of its own the program has no controlling terminal, so it cannot type into ours; and in a group of
    # its own, since `kill(0, ...)` reaches a whole group, also outside of the namespace.
    # One second after SIGXCPU the kernel sends SIGKILL. --nproc counts threads too.
    command += ["--", "setsid", "prlimit", f"--cpu={limits.cpu_s}:{limits.cpu_s + 1}", "--core=0", "--nofile=64"]
    command.append("--sigpending=1024")  # of timers too
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
    for number in UNKNOWN_CALLS:
        made.add_rule(pyseccomp.ERRNO(NO_SUCH_CALL), number)
    # The flags of clone3 are in memory, which filters cannot read, so it must not exist.
    made.add_rule(pyseccomp.ERRNO(NO_SUCH_CALL), "clone3")
    for flag in CLONE_NEW:
        made.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    # A thread with descriptors of its own would have as many as a process: the limit is one per table.
    threads = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, CLONE_THREAD | CLONE_FILES, CLONE_THREAD)
    made.add_rule(refuse, "clone", threads)
    unshares = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, CLOSE_RANGE_UNSHARE, CLOSE_RANGE_UNSHARE)
    made.add_rule(refuse, "close_range", unshares)
    made.add_rule(refuse, "fcntl", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, LOW, F_SETPIPE_SZ))
    for command in LOCKS:
        made.add_rule(pyseccomp.ERRNO(errno.ENOLCK), "fcntl", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, LOW, command))
    if not may_fork:
        for name in ("fork", "vfork"):
            if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:
                made.add_rule(refuse, name)
        # A clone that makes a thread is allowed, any other is not.
        made.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, CLONE_THREAD, 0))
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
