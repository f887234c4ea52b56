"""Programs that try to get out of the sandbox, or to take more than they may: each ends in a typed outcome."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyseccomp
import pytest

from rlsys.runtime.processes import adopt_orphans
from rlsys.sandbox.command import UNKNOWN_CALLS, filter_bytes, python, sandbox_command
from rlsys.sandbox.program import Limits, Program, Result
from rlsys.sandbox.run import _memory_file, find_obstacle, run

pytestmark = pytest.mark.skipif(find_obstacle() is not None, reason=f"no sandbox on this machine: {find_obstacle()}")
FILE = f"main-{os.getpid()}.py"  # by its name a process of these tests is known among those of others


def program(code: str, stdin: str = "", **limits: float) -> Result:
    """Run Python code; every attempt prints ESCAPED when it gets what it wants."""
    given = {"wall_s": 30.0, **limits}  # far more than what ends by itself needs, on a busy machine too
    return run(Program([python(), "-I", FILE], {FILE: code}, stdin), Limits(**given))  # type: ignore[arg-type]


def test_a_program_reads_and_writes() -> None:
    result = program("import json, math; print(json.loads(input())['x'] * 2)", '{"x": 21}\n')
    assert (result.outcome, result.exit_status, result.stdout, result.stderr) == ("ok", 0, "42\n", "")


def test_an_event_loop_works_without_sockets() -> None:
    result = program("import asyncio\nasync def f(): await asyncio.sleep(0.01); return 3\nprint(asyncio.run(f()))")
    assert (result.outcome, result.stdout) == ("ok", "3\n")


def test_a_failing_program_says_so() -> None:
    result = program("import sys; print('half'); sys.exit('no more')")
    assert (result.outcome, result.exit_status, result.stdout) == ("exit", 1, "half\n")
    assert result.stderr == "no more\n"
    assert program("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").outcome == "signal"


ATTEMPTS = {
    "files": "for p in ('/etc/passwd', '/etc/shadow', '/proc/1/environ', '/proc/self/status', SECRET):\n"
    "    try: print('ESCAPED', open(p).read())\n    except OSError: pass",
    "listing": "import os\nfound = os.listdir('/')\n"
    "print(set(found) - {'sandbox', 'dev', 'root', 'etc', 'bin', 'lib', 'lib64', 'usr', BASE} or '')",
    "environment": "import os\nprint(set(os.environ) - {'HOME', 'PATH', 'LANG', 'PWD'} or '')",
    "writing": "for p in ('/usr/x', '/etc/x', '/x', '/bin/x', '/dev/x', SECRET):\n"
    "    try: open(p, 'w').write('x'); print('ESCAPED', p)\n    except OSError: pass",
    "system": "import os\nfor c in ('mount -t tmpfs none /usr', 'mount -o remount,rw /', 'mknod x c 1 1'):\n"
    "    if os.system(c + ' 2>/dev/null') == 0: print('ESCAPED', c)",
    "sockets": "import ctypes, errno, socket\nfor family in (1, 2, 10, 16, 17, 40):  # 40: AF_VSOCK\n"
    "    try: socket.socket(family, 1); print('ESCAPED', family)\n"
    "    except OSError as e: print('ESCAPED' if e.errno != errno.EPERM else '')\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.syscall(438, 0, 0, 0) != -1 or ctypes.get_errno() != errno.EPERM: print('ESCAPED')  # pidfd_getfd",
    "network": "import socket\nfor host in ('127.0.0.1', 'localhost', '::1'):\n"
    "    try: socket.create_connection((host, PORT), 1); print('ESCAPED')\n    except OSError: pass",
    "abstract socket": "import socket\n"
    "try: socket.socket(socket.AF_UNIX).connect('\\0' + ABSTRACT); print('ESCAPED')\nexcept OSError: pass",
    "signals": "import os\nfor p in range(1, 100000):\n    if p != os.getpid():\n"
    "        try: os.kill(p, 0); print('ESCAPED', p) if p not in (1, 2) else None\n        except OSError: pass",
    "descriptors": "import os\nfor d in range(3, 256):\n"
    "    try: os.fstat(d); print('ESCAPED', d)\n    except OSError: pass",
    "own code": "import os\nprint('ESCAPED') if os.path.exists(SOURCE) else None",
    "calls": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "for name, number in CALLS.items():\n"
    "    if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1: print('ESCAPED', name)\n"
    "for number in NEWER:\n"
    "    if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 38: print('ESCAPED', number)",
    "privileges": "import ctypes\nlibc = ctypes.CDLL(None)\nheld = (ctypes.c_uint32 * 6)(*[1] * 6)\n"
    "if libc.prctl(39, 0, 0, 0, 0) != 1: print('ESCAPED: programs may gain privileges')\n"
    "if libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), held) or any(held): print('ESCAPED', list(held))",
    "memory in pipes and locks": "import ctypes, errno, fcntl, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "def refused(error, name, *given):\n"
    "    if libc.syscall(SOME[name], *map(ctypes.c_ulong, given)) != -1 or ctypes.get_errno() != error:\n"
    "        print('ESCAPED', name, given)\n"
    "_, end = os.pipe()\nfile = os.open('x', os.O_RDWR | os.O_CREAT)\nlock = ctypes.create_string_buffer(32)\n"
    "for high in (0, 2**32):  # of a command the kernel reads the lower half alone\n"
    "    refused(errno.EPERM, 'fcntl', end, high + 1031, 2**20)\n"
    "    for command in (6, 7, 37, 38):\n"
    "        refused(errno.ENOLCK, 'fcntl', file, high + command, ctypes.addressof(lock))\n"
    "refused(errno.EPERM, 'close_range', 100, 200, 2)\n"
    "refused(errno.EPERM, 'clone', 0x10900, 0, 0, 0, 0)  # a thread with descriptors of its own",
    "memory in sockets": "import socket\nkept, held = [], 0\ntry:\n    while True:\n"
    "        kept += socket.socketpair()\n        for end in kept[-2:]:\n            end.setblocking(False)\n"
    "            try: end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10**9); print('ESCAPED')\n"
    "            except OSError: pass\n"
    "            try: socket.send_fds(end, [b'x'], [0]); print('ESCAPED')\n            except OSError: pass\n"
    "            try:\n                while True: held += end.send(bytes(32768))\n            except OSError: pass\n"
    "except OSError: print('ESCAPED' if held > 2**24 else '', held if held > 2**24 else '')",
}
# Each could give the memory or the trace of another process, memory that no limit counts, or a way around the filter.
CALLS = (
    *("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "perf_event_open", "bpf", "syslog"),
    *("io_uring_setup", "userfaultfd", "keyctl", "add_key", "request_key", "memfd_create", "vmsplice", "setxattr"),
    *("lsetxattr", "fsetxattr", "inotify_init1", "fanotify_init", "landlock_create_ruleset", "shmget", "msgget"),
    *("mq_open", "semget", "mount", "move_mount", "fsopen", "mount_setattr", "setns", "unshare", "personality"),
    *("open_by_handle_at", "socket", "bind", "connect", "listen", "accept4", "setsockopt", "sendmsg", "sendmmsg"),
)


def _numbers(names: tuple[str, ...]) -> dict[str, int]:
    return {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in names}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nothing_outside_is_read_written_or_reached(
    attempt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "ESCAPED")
    secret = tmp_path / "secret.txt"
    secret.write_text("untouched")
    abstract = f"rlsys-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind("\0" + abstract)
        local.listen()
        names = {
            "SECRET": str(secret),
            "PORT": server.getsockname()[1],
            "ABSTRACT": abstract,
            "SOURCE": os.path.abspath(__file__),
            "BASE": sys.base_prefix.split("/")[1],
            "CALLS": _numbers(CALLS),
            "SOME": _numbers(("fcntl", "close_range", "clone")),  # refused by their arguments
            "NEWER": list(UNKNOWN_CALLS),
        }
        header = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        result = program(header + ATTEMPTS[attempt])
    assert "ESCAPED" not in result.stdout + result.stderr
    assert (result.outcome, result.stdout.strip(), result.stderr) == ("ok", "", ""), result
    assert secret.read_text() == "untouched"


def test_signals_to_the_parent_do_not_arrive() -> None:
    """The parent in there is the namespace's first process, which takes no signal from inside."""
    code = "import os\nos.kill(os.getppid(), 9)\ntry: os.kill(-1, 9)\nexcept OSError: pass\nprint('on')"
    result = program(code)
    assert (result.outcome, result.stdout) == ("ok", "on\n"), result


def test_signals_to_its_process_group_reach_nobody_outside() -> None:
    """The group of whoever started it would be in reach too: the kernel asks for no process id."""
    result = program("import os\nos.kill(0, 9)")
    assert (result.outcome, result.exit_status) == ("signal", 128 + signal.SIGKILL)  # it has killed itself alone


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only these processors have calls of a second architecture")
def test_calls_of_another_architecture_end_the_program() -> None:
    """Their numbers differ, so the filter would take `socket` for another call."""
    getpid = r"b'\xb8\x14\0\0\0\xcd\x80\xc3'"  # mov eax, 20; int 0x80; ret
    result = program(
        f"import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write({getpid})\n"
        "print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))())"
    )
    assert (result.outcome, result.stdout) == ("signal", "")


MAY_FORK = os.geteuid() != 0
FORK = "import os\ntry: print('forked', os.fork())\nexcept OSError as error: print(error)"
"""Asked first: were it to succeed for root, a bomb would take the machine with it."""
BOMBS = [
    "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "import os, time\ntry:\n    if os.fork() == 0: os.setsid()\nexcept OSError: pass\n"
    "while True:\n    try: os.fork()\n    except OSError: pass",
    "import ctypes\nlibc = ctypes.CDLL(None)\nwhile True: libc.vfork()",
    "import ctypes\nlibc = ctypes.CDLL(None)\nwhile True: libc.syscall(56, 17, 0, 0, 0, 0)",  # clone itself
    "import subprocess\nwhile True:\n    try: subprocess.Popen(['/bin/sleep', '9'])\n    except OSError: pass",
]
GREEDY = [
    ("while True: pass", {"wall_s": 3.0}, {"timeout"}),
    ("import time; time.sleep(60)", {"wall_s": 3.0}, {"timeout"}),
    ("while True: pass", {"cpu_s": 1}, {"timeout"}),
    ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", {"cpu_s": 1}, {"timeout"}),
    # Two threads use up the CPU time in half as many seconds; hashing lets both run.
    (
        "import hashlib, signal, threading\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\ntext = bytes(2**22)\n"
        "def work():\n    while True: hashlib.sha256(text)\n"
        "threading.Thread(target=work).start()\nwork()",
        {"cpu_s": 2, "wall_s": 30.0},
        {"timeout"},
    ),
    ("kept = []\nwhile True: kept.append(bytearray(10**7))", {"memory_mib": 128}, {"memory"}),
    ("import mmap\nkept = []\nwhile True:\n    kept.append(mmap.mmap(-1, 10**7))\n    kept[-1].write(bytes(10**7))",
     {"memory_mib": 128}, {"exit", "memory"}),
    ("import os\nwhile True: os.write(os.memfd_create('x'), bytes(10**7))", {"memory_mib": 128}, {"exit"}),
    ("import ctypes\nlibc = ctypes.CDLL(None)\nwhile True:\n    if libc.shmget(0, 10**7, 0o1600) < 0: raise OSError",
     {"memory_mib": 128}, {"exit"}),
    ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
     {"memory_mib": 4096, "threads": 16}, {"processes", "exit", "signal"}),
    ("import sys\nwhile True: sys.stdout.write('x' * 10**6)", {}, {"output"}),
    ("import sys\nwhile True: sys.stderr.write('x' * 10**6)", {}, {"output"}),
    ("with open('big', 'wb') as f:\n    while True: f.write(bytes(10**6))", {}, {"exit"}),
    ("for n in range(10**6):\n    with open(str(n), 'wb') as f: f.write(bytes(10**6))", {}, {"exit"}),
    ("with open('/dev/shm/x', 'wb') as f:\n    while True: f.write(bytes(10**6))", {}, {"exit"}),
    # Empty files, folders and links hold memory as well.
    ("import os\nfor n in range(10**8): os.mknod(str(n))", {"memory_mib": 64}, {"memory"}),
    ("import os\nfor n in range(10**8): os.mkdir(f'/dev/shm/{n}')", {"memory_mib": 64}, {"memory"}),
    ("import os\nos.mknod('x')\nfor n in range(10**8): os.link('x', 'y' * 200 + str(n))",
     {"memory_mib": 64}, {"memory"}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "limits", "outcomes"), GREEDY, ids=[str(number) for number in range(len(GREEDY))])
def test_what_takes_too_much_is_ended_with_all_it_started(
    code: str, limits: dict[str, float], outcomes: set[str]
) -> None:
    _ends(code, limits, outcomes)


def test_page_tables_are_memory_too() -> None:
    """A program that may reserve what it wants can fill them by reading memory that never becomes resident."""
    code = (
        "import mmap\nkept = []\nfor _ in range(100):\n    kept.append(mmap.mmap(-1, 2**33, flags=0x4022))\n"
        "    for at in range(0, 2**33, 2**21): kept[-1][at]\nimport time; time.sleep(60)"
    )
    program_ = Program([python(), "-I", FILE], {FILE: code}, reserves_memory=True)
    assert run(program_, Limits(wall_s=30.0, cpu_s=30, memory_mib=128)).outcome == "memory"


@pytest.mark.parametrize("code", BOMBS, ids=[str(number) for number in range(len(BOMBS))])
def test_fork_bombs(code: str) -> None:
    assert MAY_FORK or program(FORK).stdout == "[Errno 1] Operation not permitted\n"
    _ends(code, {"wall_s": 0.7}, {"timeout", "processes", "exit", "signal"})


@pytest.mark.skipif(not MAY_FORK, reason="root's processes are not limited by the kernel: several are refused")
def test_as_many_processes_as_are_allowed() -> None:
    code = "import os\nmade = 0\ntry:\n    while os.fork(): made += 1\nexcept OSError: print(made)\nos._exit(0)"
    assert int(program(code, processes=4, threads=4).stdout.split()[-1]) < 9


@pytest.mark.skipif(MAY_FORK, reason="only root is refused")
def test_several_processes_are_refused_where_nothing_would_limit_them() -> None:
    with pytest.raises(ValueError, match="root may run only single-process sandboxes"):
        program("print(1)", processes=2)


def _ends(code: str, limits: dict[str, float], outcomes: set[str]) -> None:
    started = time.monotonic()
    marker = f"# {os.getpid()}-{started}\n"
    result = program(marker + code, **limits)
    assert result.outcome in outcomes, result
    assert time.monotonic() - started < 60  # by itself it would never end
    assert len(result.stdout) <= 256 * 1024
    assert len(result.stderr) <= 256 * 1024
    _expect_none_left()


def _expect_none_left() -> None:
    deadline = time.monotonic() + 60
    while _in_sandboxes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _in_sandboxes() == []


def _in_sandboxes() -> list[int]:
    """Programs of this module that still run, whoever is their parent by now."""
    return [process.pid for process in psutil.process_iter() if FILE in _command(process)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize("delay_s", [0.003, 0.006, 0.012, 0.3])
def test_a_sandbox_ends_though_whoever_started_it_is_killed(delay_s: float) -> None:
    """At any moment, also before bubblewrap has asked to end with its parent: nobody is left to clean up."""
    adopter = os.fork()
    if adopter == 0:
        adopt_orphans()  # the sandbox too, which may not have got as far as its command yet
        child = os.fork()
        if child == 0:
            program("import time\ntime.sleep(60)", wall_s=1.0)
            os._exit(0)
        time.sleep(delay_s)
        os.kill(child, 9)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not pytest's timeout
        signal.alarm(60)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(adopter, 0)[1]) == 0


def test_one_signal_to_its_group_ends_a_sandbox_without_help_of_its_parents() -> None:
    """Parents that end before bubblewrap's processes ask the kernel to end with them end nothing.

    The time in between is short, so the request is left out here.
    """
    started = _start_bare("import time\nprint(flush=True)\ntime.sleep(120)", but="--die-with-parent")
    started.stdout.readline()  # the program runs
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    started.stdout.close()
    _expect_none_left()


def test_programs_of_several_processes_make_no_namespaces() -> None:
    """In a user namespace of its own a program has every capability."""
    clone = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "clone")
    code = (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nmade = libc.syscall(CLONE, 17, 0, 0, 0, 0)\n"
        "if made == 0: os._exit(7)\nprint(os.waitpid(made, 0)[1] >> 8)\n"
        "for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):\n"
        "    made = libc.syscall(CLONE, flag | 17, 0, 0, 0, 0)\n"
        "    if made == 0: os._exit(0)\n    if made != -1 or ctypes.get_errno() != 1: print('ESCAPED', flag)"
    )
    started = _start_bare(code.replace("CLONE", str(clone)), may_fork=True)
    assert started.communicate(timeout=60)[0] == b"7\n"


def _start_bare(code: str, *, may_fork: bool = False, but: str | None = None) -> subprocess.Popen[bytes]:
    """Start a program in a sandbox that nobody watches, without one option of its command."""
    filter_ = filter_bytes(may_fork=may_fork)
    with _memory_file(code.encode()) as file, _memory_file(filter_) as calls, _memory_file(b"") as status:
        command = sandbox_command(Program([python(), "-I", FILE]), Limits(wall_s=90), {FILE: file}, calls, status)
        return subprocess.Popen(
            [part for part in command if part != but],
            stdout=subprocess.PIPE,
            pass_fds=[file, calls, status],
            start_new_session=True,
        )


def test_nothing_is_left_for_others_to_wait_for() -> None:
    """In a process that adopts orphans, as reward functions' processes do, no ended one stays in the table."""
    child = os.fork()
    if child == 0:
        adopt_orphans()
        for code, limits in [("print(1)", {}), ("import time; time.sleep(9)", {"wall_s": 1.0})] * 3:
            program(code, **limits)
        os._exit(len(psutil.Process().children(recursive=True)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_the_program_says_does_not_make_it_a_sandbox_that_failed() -> None:
    result = program("import sys; print('bwrap: Creating new namespace failed', file=sys.stderr); sys.exit(1)")
    assert result.outcome == "exit"


def test_many_at_once_do_not_meet() -> None:
    code = (
        "import os, sys\nname = input()\nopen('mine', 'w').write(name)\nprint(open('mine').read(), len(os.listdir()))"
    )
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda number: program(code, f"{number}\n"), range(12)))
    assert [result.stdout for result in results] == [f"{number} 2\n" for number in range(12)]
    assert threading.active_count() < 20
