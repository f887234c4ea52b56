"""A process that imports libraries once, and forks Ray's workers, which then need not import them.

    python fork_server.py serve FD MODULE,...              the server: imports, then forks a worker for whoever asks
    python fork_server.py ask SOCKET default_worker.py ... in the interpreter's place in a worker's command: asks

Ray starts a worker as `PY_EXECUTABLE default_worker.py OPTIONS`, with an environment of its own. The asking process
passes arguments, environment, directory and files on, and the fork goes on as the interpreter would have. This file is
run as a script and imports nothing of rlsys: a worker imports rlsys once Ray has set its paths.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

STANDARD = (0, 1, 2)  # stdin, stdout, stderr
READY = b"."
LENGTH = 8  # bytes of a request's length
# Seconds until a worker is started without the server. One that imports by itself is not there earlier than a server
# that still imports; a slow machine needs half a minute for vLLM. `rlsys.runtime.cluster` has Ray wait longer.
PATIENCE_S = 120.0
# For a request that has begun: its sender may be stopped, and others wait behind it.
REQUEST_S = 10.0


@contextlib.contextmanager
def without_mlflow() -> Iterator[None]:
    """Hide MLflow from libraries that are imported meanwhile.

    DeepSpeed's autotuner, which rlsys does not use, imports it where it is installed. That takes seconds, and starts a
    thread, with which a process cannot fork workers.
    """
    hides = "mlflow" not in sys.modules
    if hides:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hides:
            del sys.modules["mlflow"]


def ask(path: str, argv: list[str]) -> None:
    """Have the server start a worker in this process's place; where it cannot, become that worker."""
    script = next(place for place, word in enumerate(argv) if not word.startswith("-"))  # after the interpreter's flags
    request = json.dumps({"argv": argv[script:], "env": dict(os.environ), "folder": os.getcwd()}).encode()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connection.connect(path)
            if connection.recv(1) == READY:
                socket.send_fds(connection, [len(request).to_bytes(LENGTH, "big")], STANDARD)
                connection.sendall(request)
                return
    except OSError:
        pass  # the server has ended, or is still importing: the worker imports by itself
    os.execv(sys.executable, [sys.executable, *argv])


def serve(descriptor: int, modules: list[str]) -> None:
    """Import the modules and fork a worker for every request, until the other end of stdin closes.

    Args:
        descriptor: a socket that listens already, so that early workers wait for the imports.
        modules: names of modules.
    """
    import gc
    import importlib
    import select

    def end(*_: object) -> None:
        shutil.rmtree(os.path.dirname(listener.getsockname()), ignore_errors=True)
        os._exit(0)  # libraries have nothing to tidy up, and some complain about objects that are left

    signal.signal(signal.SIGTERM, end)
    with socket.socket(fileno=descriptor) as listener:
        gc.disable()
        with without_mlflow(), contextlib.suppress(Exception):  # a worker will import it again, and its log shows why
            for name in modules:
                importlib.import_module(name)
        gc.freeze()  # a collection in a worker would touch, and so copy, the memory of all that
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
        driver = sys.stdin.fileno()
        while driver not in select.select([listener, driver], [], [])[0]:
            connection, _ = listener.accept()
            with connection:
                _answer(connection, listener)
    end()


def _answer(connection: socket.socket, listener: socket.socket) -> None:
    """Fork one worker. One that does not wait any more gets none."""
    files: list[int] = []
    try:
        connection.settimeout(REQUEST_S)
        connection.sendall(READY)
        first, files, _, _ = socket.recv_fds(connection, LENGTH, len(STANDARD))
        size, received = int.from_bytes(first, "big"), b""
        while len(received) < size and (part := connection.recv(size - len(received))):
            received += part
        request = json.loads(received)
    except (OSError, ValueError):
        _close(files)
        return
    # A fork has none of its parent's other threads, and would wait for what they hold.
    can_fork = len(os.listdir("/proc/self/task")) == 1
    if os.fork() == 0:
        listener.close()
        connection.close()
        _become_worker(request, files, can_fork)
    _close(files)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _become_worker(request: dict[str, Any], files: list[int], can_fork: bool) -> None:
    """Go on as an interpreter that Ray has started, or as a new one; never returns."""
    for target, file in zip(STANDARD, files, strict=True):
        os.dup2(file, target)
        os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ray ends what a dead worker leaves behind by its process group: with the server's it would end all other forks.
    os.setpgid(0, 0)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    if not can_fork:
        os.execv(sys.executable, [sys.executable, *request["argv"]])
    sys.argv[:] = request["argv"]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    _renew()
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


def _renew() -> None:
    """Renew what every process has of its own, and what was read from the server's environment."""
    import random

    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), sys.argv[3].split(","))
    else:
        ask(sys.argv[2], sys.argv[3:])
