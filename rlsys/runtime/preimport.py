"""The driver's side of fork servers, which import the libraries of workers while the driver prepares a run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rlsys.runtime.processes import TAG

SCRIPT = str(Path(__file__).with_name("fork_server.py"))
MAX_SOCKET = 100  # Linux takes names of 107 bytes


@dataclass(frozen=True)
class Imports:
    """Modules that a role's workers need, and the environment that these read while they are imported."""

    modules: tuple[str, ...]
    env: Mapping[str, str] = field(hash=False)


class Preimport:
    """One fork server per set of modules; they end with this process. Without any, workers start as Ray starts them."""

    def __init__(self, imports: Mapping[str, Imports]) -> None:
        """Start the servers.

        Args:
            imports: by role; roles with equal modules share a server.
        """
        # Forks show the environment that their server began with, so it must have the tag by which a run's processes
        # are found (`rlsys.runtime.processes`).
        self.tag = uuid.uuid4().hex
        self._commands: dict[str, str] = {}
        self._opened: list[tuple[int, str]] = []
        started: dict[tuple[str, ...], str] = {}
        for role, wanted in imports.items():
            if wanted.modules not in started:
                started[wanted.modules] = self._start(wanted)
            self._commands[role] = started[wanted.modules]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the servers; workers that were forked stay, and later ones start as Ray starts them."""
        while self._opened:
            pipe, folder = self._opened.pop()
            os.close(pipe)
            shutil.rmtree(folder, ignore_errors=True)

    def options(self, role: str) -> dict[str, str]:
        """Return the entries of a Ray runtime environment with which a worker of the role is forked."""
        return {"py_executable": self._commands[role]} if role in self._commands else {}

    def _start(self, imports: Imports) -> str:
        """Start a server; returns what stands for the interpreter in a worker's command."""
        folder = tempfile.mkdtemp(prefix="rlsys-fork-")  # only this user may enter it
        path = f"{folder}/socket"
        if len(os.fsencode(path)) > MAX_SOCKET:
            os.rmdir(folder)
            return sys.executable
        end, pipe = os.pipe()
        subprocess.Popen(
            [sys.executable, "-P", SCRIPT, "serve", path, ",".join(imports.modules)],
            stdin=end,
            stdout=subprocess.DEVNULL,  # a worker's own imports say the same in its log
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is the driver's
            env={**os.environ, **imports.env, TAG: self.tag, "OPENBLAS_NUM_THREADS": "1"},
        )
        os.close(end)
        self._opened.append((pipe, folder))
        return shlex.join([sys.executable, "-S", "-E", SCRIPT, "ask", path])
