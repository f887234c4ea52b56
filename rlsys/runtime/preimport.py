"""The driver's side of fork servers, which import the libraries of workers while the driver prepares a run."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rlsys.runtime.limits import usable_cores
from rlsys.runtime.processes import TAG

END_S = 1.0  # until a server that does not end by itself is killed
SCRIPT = str(Path(__file__).with_name("fork_server.py"))


@dataclass(frozen=True)
class Imports:
    """Modules that a role's workers need, and the environment that these read while they are imported."""

    modules: tuple[str, ...]
    env: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True)
class _Server:
    folder: str
    pipe: int  # closing it ends the server, at the latest after its imports
    process: subprocess.Popen[bytes]
    command: str  # stands for the interpreter in a worker's command


class Preimport:
    """One fork server per set of modules; they end with this process. Without any, workers start as Ray starts them."""

    def __init__(self, imports: Mapping[str, Imports]) -> None:
        """Start as many servers as there are cores beside this process's; `start_all` starts the others.

        Args:
            imports: by role, most urgent first; roles with equal modules share a server.
        """
        # Forks show the environment that their server began with, so it must have the tag by which a run's processes
        # are found (`rlsys.runtime.processes`).
        self.tag = uuid.uuid4().hex
        self._imports = imports
        self._started: dict[tuple[str, ...], _Server | None] = {}
        spare = max(1, usable_cores() - 1)
        for wanted in list(dict.fromkeys(imports.values()))[:spare]:
            self._start(wanted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_all(self) -> None:
        """Start the servers that are missing, once this process only waits for others."""
        for wanted in self._imports.values():
            self._start(wanted)

    def close(self) -> None:
        """End the servers; workers that were forked stay, and later ones start as Ray starts them."""
        for server in filter(None, self._started.values()):
            os.close(server.pipe)
            try:
                server.process.wait(END_S)  # a worker that it has just promised is still forked
            except subprocess.TimeoutExpired:
                server.process.kill()  # it may import for half a minute more
                server.process.wait()
            shutil.rmtree(server.folder, ignore_errors=True)
        self._started, self._imports = {}, {}

    @property
    def pids(self) -> list[int]:
        """Process ids of the servers."""
        return [server.process.pid for server in self._started.values() if server is not None]

    def options(self, role: str) -> dict[str, str]:
        """Return the entries of a Ray runtime environment with which a worker of the role is forked."""
        wanted = self._imports.get(role)
        server = self._started[wanted.modules] if wanted is not None else None
        return {"py_executable": server.command} if server is not None else {}

    def _start(self, imports: Imports) -> None:
        if imports.modules in self._started:
            return
        folder = tempfile.mkdtemp(prefix="rlsys-fork-")  # only this user may enter it
        path = f"{folder}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(path)
            except OSError:  # the folder for temporary files has too long a name: workers import by themselves
                shutil.rmtree(folder)
                self._started[imports.modules] = None
                return
            listener.listen()
            end, pipe = os.pipe()
            process = subprocess.Popen(
                [sys.executable, "-P", SCRIPT, "serve", str(listener.fileno()), ",".join(imports.modules)],
                stdin=end,
                stdout=subprocess.DEVNULL,  # a worker's own imports say the same in its log
                stderr=subprocess.DEVNULL,
                pass_fds=(listener.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal is the driver's
                env={**os.environ, **imports.env, TAG: self.tag, "OPENBLAS_NUM_THREADS": "1"},
            )
            os.close(end)
        command = shlex.join([sys.executable, "-S", "-E", SCRIPT, "ask", path])
        self._started[imports.modules] = _Server(folder, pipe, process, command)
