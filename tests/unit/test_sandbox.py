"""Programs that try to get out of the sandbox, or to take more than they may: each ends in a typed outcome."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from rlsys.sandbox.program import Limits, Program, Result
from rlsys.sandbox.run import obstacle, python, run

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"no sandbox on this machine: {obstacle()}")


def program(code: str, stdin: str = "", **limits: float) -> Result:
    """Run Python code; every attempt prints ESCAPED when it gets what it wants."""
    given = {"wall_s": 10.0, **limits}
    return run(Program([python(), "-I", "main.py"], {"main.py": code}, stdin), Limits(**given))  # type: ignore[arg-type]


def test_a_program_reads_and_writes() -> None:
    result = program("import json, math; print(json.loads(input())['x'] * 2)", '{"x": 21}\n')
    assert (result.outcome, result.exit_status, result.stdout, result.stderr) == ("ok", 0, "42\n", "")


def test_a_failing_program_says_so() -> None:
    result = program("import sys; print('half'); sys.exit('no more')")
    assert (result.outcome, result.exit_status, result.stdout) == ("exit", 1, "half\n")
    assert result.stderr == "no more\n"
    assert program("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)").outcome == "signal"


ATTEMPTS = {
    "files": "for p in ('/etc/passwd', '/etc/shadow', '/proc/1/environ', '/proc/self/status', SECRET):\n"
    "    try: print('ESCAPED', open(p).read())\n    except OSError: pass",
    "listing": "import os\nfound = os.listdir('/')\n"
    "print(set(found) - {'work', 'dev', 'root', 'etc', 'bin', 'lib', 'lib64', 'usr', BASE} or '')",
    "environment": "import os\nprint(set(os.environ) - {'HOME', 'PATH', 'LANG', 'PWD'} or '')",
    "writing": "for p in ('/usr/x', '/etc/x', '/x', '/bin/x', '/dev/x', SECRET):\n"
    "    try: open(p, 'w').write('x'); print('ESCAPED', p)\n    except OSError: pass",
    "system": "import os\nfor c in ('mount -t tmpfs none /usr', 'mount -o remount,rw /', 'mknod x c 1 1'):\n"
    "    if os.system(c + ' 2>/dev/null') == 0: print('ESCAPED', c)",
    "network": "import socket\nfor host in ('127.0.0.1', 'localhost', '::1'):\n"
    "    try: socket.create_connection((host, PORT), 1); print('ESCAPED')\n    except OSError: pass",
    "abstract socket": "import socket\ns = socket.socket(socket.AF_UNIX)\n"
    "try: s.connect('\\0' + ABSTRACT); print('ESCAPED')\nexcept OSError: pass",
    "signals": "import os\nfor p in range(1, 100000):\n    if p != os.getpid():\n"
    "        try: os.kill(p, 0); print('ESCAPED', p) if p not in (1, 2) else None\n        except OSError: pass",
    "descriptors": "import os\nfor d in range(3, 256):\n"
    "    try: os.fstat(d); print('ESCAPED', d)\n    except OSError: pass",
    "own code": "import os\nprint('ESCAPED') if os.path.exists(SOURCE) else None",
}


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


GREEDY = [
    ("while True: pass", {"wall_s": 0.5}, "timeout"),
    ("import time; time.sleep(60)", {"wall_s": 0.5}, "timeout"),
    ("while True: pass", {"cpu_s": 1}, "timeout"),
    ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", {"cpu_s": 1}, "timeout"),
    ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {}, "processes"),
    ("import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True:\n        try: os.fork()\n"
     "        except OSError: pass\ntime.sleep(60)", {}, "processes"),
    ("kept = []\nwhile True: kept.append(bytearray(10**7))", {"memory_mib": 128}, "memory"),
    ("import os\n[os.fork() for _ in range(3)]\nx = bytearray(10**8)\nfor i in range(0, 10**8, 4096): x[i] = 1\n"
     "import time; time.sleep(9)", {"memory_mib": 256}, "memory"),
    ("import sys\nwhile True: sys.stdout.write('x' * 10**6)", {}, "output"),
    ("import sys\nwhile True: sys.stderr.write('x' * 10**6)", {}, "output"),
    ("with open('big', 'wb') as f:\n    while True: f.write(bytes(10**6))", {}, "exit"),
    ("for n in range(10**6):\n    with open(str(n), 'wb') as f: f.write(bytes(10**6))", {}, "exit"),
    ("with open('/dev/shm/x', 'wb') as f:\n    while True: f.write(bytes(10**6))", {}, "exit"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "limits", "outcome"), GREEDY, ids=[str(number) for number in range(len(GREEDY))])
def test_what_takes_too_much_is_ended_with_all_it_started(code: str, limits: dict[str, float], outcome: str) -> None:
    started = time.monotonic()
    result = program(code, **limits)
    assert result.outcome == outcome, result
    assert time.monotonic() - started < 8
    assert len(result.stdout) <= 256 * 1024
    assert len(result.stderr) <= 256 * 1024
    deadline = time.monotonic() + 5
    while _in_sandboxes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _in_sandboxes() == []


def _in_sandboxes() -> list[int]:
    """What is left below this process of sandboxes."""
    return [child.pid for child in psutil.Process().children(recursive=True) if "main.py" in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_a_sandbox_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """The process that runs the program is killed outright: nobody is left to clean up."""
    marker = f"marker_{os.getpid()}"
    child = os.fork()
    if child == 0:
        program(f"{marker} = 1\nimport time\ntime.sleep(60)", wall_s=60.0)
        os._exit(0)
    deadline = time.monotonic() + 10
    while not (inside := psutil.Process(child).children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    inside = psutil.Process(child).children(recursive=True)
    os.kill(child, 9)
    os.waitpid(child, 0)
    _, alive = psutil.wait_procs(inside, timeout=10)
    assert inside
    assert alive == []


def test_many_at_once_do_not_meet() -> None:
    code = (
        "import os, sys\nname = input()\nopen('mine', 'w').write(name)\nprint(open('mine').read(), len(os.listdir()))"
    )
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda number: program(code, f"{number}\n"), range(12)))
    assert [result.stdout for result in results] == [f"{number} 2\n" for number in range(12)]
    assert threading.active_count() < 20
