"""Workers are forked with libraries imported, and are otherwise as the interpreter would have started them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlsys.runtime import fork_server
from rlsys.runtime.preimport import Imports, Preimport
from rlsys.runtime.processes import TAG, find_tagged

WORKER = """
import json, os, random, sys
import big
json.dump({
    "argv": sys.argv, "folder": os.getcwd(), "mine": os.environ.get("MINE"), "servers": os.environ.get("SERVERS"),
    "pid": os.getpid(), "group": os.getpgid(0),
    "imported_in": big.PID, "random": random.random(), "path": sys.path[0], "name": __name__,
    "threads": sys.modules["torch"].threads if "torch" in sys.modules else None,
}, open(sys.argv[1], "w"))
print("out"); print("err", file=sys.stderr)
sys.exit(3)
"""
BIG = "import os\nPID = os.getpid()\n"
TUNER = "try:\n    import mlflow\nexcept ImportError:\n    pass\n"  # as in DeepSpeed
TORCH = "def set_num_threads(count):\n    global threads\n    threads = count\n"
THREADED = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
DEADLINE_S = 60.0
Start = Callable[..., dict[str, Any]]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what stands for large libraries."""
    (tmp_path / "big.py").write_text(BIG)
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    )
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "tuner.py").write_text(TUNER)
    (tmp_path / "mlflow.py").write_text("import threaded")
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def start(modules: Path) -> Iterator[Start]:
    """Start a worker by a command, as Ray does, and return what it says of itself."""
    opened: list[Preimport] = []
    numbers = iter(range(100))

    def starter(
        *names: str, environment: dict[str, str] | None = None, server: Preimport | None = None
    ) -> dict[str, Any]:
        if server is None:
            server = Preimport({"role": Imports(names, {"SERVERS": "yes"})})
            opened.append(server)
        file = modules / f"answer-{next(numbers)}"
        command = f"exec {server.options('role')['py_executable']} {modules}/worker.py {file}"
        asked = subprocess.run(
            ["bash", "-c", command],
            env={**os.environ, "MINE": "1", **(environment or {})},
            cwd=modules,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if file.exists() and (text := file.read_text()).endswith("}"):
                return {**json.loads(text), "asked": asked, "server": server}
            time.sleep(0.01)
        raise AssertionError(f"no worker: {asked}")

    yield starter
    for each in opened:
        each.close()


def test_a_worker_finds_libraries_imported_and_all_else_its_own(start: Start, modules: Path) -> None:
    found = start("big", "torch", environment={"OMP_NUM_THREADS": "7"})
    assert found["imported_in"] != found["pid"] == found["group"]  # alone in its group, which Ray ends with it
    assert (found["mine"], found["servers"]) == ("1", None)
    assert (found["folder"], found["path"], found["name"]) == (str(modules), str(modules), "__main__")
    assert found["argv"][0] == f"{modules}/worker.py"
    assert found["threads"] == 7
    assert (found["asked"].stdout, found["asked"].stderr) == ("out\n", "err\n")
    second = start(server=found["server"])
    assert second["imported_in"] == found["imported_in"]
    assert (second["pid"] != found["pid"], second["random"] != found["random"]) == (True, True)


@pytest.mark.parametrize("module", ["threaded", "broken"])
def test_what_cannot_be_forked_is_started_anew(start: Start, module: str) -> None:
    """A library with threads cannot; one that fails is left to the worker, whose log shows the error."""
    found = start(module, "big")
    assert found["imported_in"] == found["pid"]
    assert found["mine"] == "1"


def test_mlflow_and_its_thread_are_not_imported_by_others(start: Start) -> None:
    found = start("tuner", "big")
    assert found["imported_in"] != found["pid"]


def test_mlflow_is_there_again(modules: Path) -> None:
    (modules / "mlflow.py").write_text("")
    code = (
        "import sys; from rlsys.runtime.fork_server import without_mlflow\n"
        "with without_mlflow(): import tuner\n"
        "assert 'mlflow' not in sys.modules; import mlflow\n"
        "with without_mlflow(): import mlflow"  # a tracker's, in the same process
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE_S)


def test_without_a_server_the_worker_starts_all_the_same(start: Start) -> None:
    server = Preimport({"role": Imports(("big",), {})})
    command = server.options("role")
    server.close()
    server.options = lambda role: command  # type: ignore[method-assign]
    found = start(server=server)
    assert found["imported_in"] == found["pid"]


def test_who_says_nothing_holds_up_the_others_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker that was stopped while it asked: the server serves as long as the run, and one at a time."""
    monkeypatch.setattr(fork_server, "REQUEST_S", 0.2)
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listener, ours, theirs:
        started = time.monotonic()
        fork_server._answer(theirs, listener)
        assert time.monotonic() - started < DEADLINE_S
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(ours, [(100).to_bytes(fork_server.LENGTH, "big")], [0, 1, 2])  # and no request
        fork_server._answer(theirs, listener)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_long_name_of_the_temporary_folder_ends_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with Preimport({"role": Imports(("json",), {})}) as servers:
        assert servers.options("role") == {}  # the worker starts as Ray starts it
    assert list(folder.iterdir()) == []


def test_servers_carry_the_tag_and_end_when_they_are_closed() -> None:
    with Preimport({"a": Imports(("json",), {}), "b": Imports(("json",), {}), "c": Imports(("math",), {})}) as servers:
        servers.start_all()
        tagged = find_tagged(servers.tag)
        assert len(tagged) == 2  # equal modules, one server
        assert servers.options("a") == servers.options("b") != servers.options("c")
        assert servers.options("d") == {}
        folders = [Path(entry.folder) for entry in filter(None, servers._started.values())]
        assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)  # nobody else may have code run
    gone, alive = psutil.wait_procs(tagged, timeout=DEADLINE_S)
    assert (len(gone), alive) == (2, [])
    assert not any(folder.exists() for folder in folders)


def test_a_server_that_still_imports_ends_at_once(modules: Path) -> None:
    """A run that is interrupted early says that every process has ended."""
    (modules / "slow.py").write_text("import time\ntime.sleep(600)\n")
    with Preimport({"role": Imports(("slow",), {})}) as servers:
        assert len(find_tagged(servers.tag)) == 1
    assert find_tagged(servers.tag) == []


def test_servers_end_with_the_driver(tmp_path: Path) -> None:
    driver = (
        "from rlsys.runtime.preimport import Imports, Preimport; import os\n"
        "servers = Preimport({'a': Imports(('json',), {})}); print(servers.tag, flush=True); os.kill(os.getpid(), 9)"
    )
    environment = {key: value for key, value in os.environ.items() if key != TAG}
    found = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, env=environment, check=False)
    _, alive = psutil.wait_procs(find_tagged(found.stdout.strip()), timeout=DEADLINE_S)
    assert alive == []
