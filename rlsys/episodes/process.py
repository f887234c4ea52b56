"""The processes of environments: one imports their code, and is forked anew for every episode.

    python -m rlsys.episodes.process FD

is the process that imports. It reads what to make from its socket, says whether that works, and then forks for every
socket that it is sent: the fork makes one environment, and answers requests on that socket until it closes. Requests
are pickled, because they come from us; replies are JSON, because they come from code of any origin.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from rlsys.environments import Opening, ParseError, Turn
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.processes import exit_with_parent

LENGTH = struct.Struct("!Q")  # bytes of the message that follows
MAX_REPLY = 64 * 2**20  # bytes
TRACEBACK_LIMIT = -5  # the innermost frames


def send(connection: socket.socket, message: bytes) -> None:
    """Send a message with its length."""
    connection.sendall(LENGTH.pack(len(message)) + message)


def receive(connection: socket.socket) -> bytes | None:
    """Return the next message; None at the end of the connection."""
    head = _exactly(connection, LENGTH.size)
    return None if head is None else _exactly(connection, LENGTH.unpack(head)[0])


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    parts, left = [], size
    while left:
        part = connection.recv(min(left, 2**20))
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def serve(connection: socket.socket) -> None:
    """Import, then fork for every socket that comes: the life of the process that imports."""
    spec = receive(connection)
    if spec is None:
        return
    try:
        make = pickle.loads(spec).maker()
    except Exception as error:
        send(connection, _json({"error": f"{type(error).__name__}: {error}", "traceback": _trace()}))
        return
    freeze_started()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    send(connection, _json({}))
    while True:
        _, files, _, _ = socket.recv_fds(connection, 1, 1)
        if not files:
            return
        if os.fork() == 0:
            connection.close()
            os._exit(_play(socket.socket(fileno=files[0]), make))
        os.close(files[0])


def _play(connection: socket.socket, make: Callable[[Mapping[str, Any]], Any]) -> int:
    """Answer requests of one episode: the life of a fork."""
    exit_with_parent()
    os.setsid()  # what the environment starts is in its process group, and ends with it
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    send(connection, _json({"pid": os.getpid()}))
    _renew()
    episode = _Episode(make)
    with asyncio.Runner() as runner:
        while (request := receive(connection)) is not None:
            try:
                reply = runner.run(episode.answer(*pickle.loads(request)))
            except ParseError as error:
                reply = {"parse_error": str(error)}
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}", "traceback": _trace()}
            send(connection, _json(reply))
    return 0


class _Episode:
    """One environment, once it has been made."""

    def __init__(self, make: Callable[[Mapping[str, Any]], Any]) -> None:
        self._make = make
        self._made: Any = None

    async def answer(self, what: str, given: Mapping[str, Any]) -> dict[str, Any]:
        if what == "start":
            self._made = self._make(given)
            opening = await _awaited(self._made.start(**given))
            return _fields(opening, Opening)
        if what == "step":
            return _fields(await _awaited(self._made.step(given)), Turn)
        # At the end: a reward that is asked for, what reward functions see, and what the environment tidies up.
        reward = await _awaited(self._made.reward()) if hasattr(self._made, "reward") and given["asks_reward"] else None
        state = self._made.state() if hasattr(self._made, "state") else None
        if hasattr(self._made, "close"):
            await _awaited(self._made.close())
        return {"reward": reward, "state": state}


def _fields(record: Any, kind: type[Opening | Turn]) -> dict[str, Any]:
    if not isinstance(record, kind):
        raise TypeError(f"returned {type(record).__name__}, not {kind.__name__} of rlsys.environments")
    found: dict[str, Any] = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return found


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, default=str).encode()


def _trace() -> str:
    return traceback.format_exc(limit=TRACEBACK_LIMIT)


def _renew() -> None:
    """Give the fork random numbers of its own."""
    import random

    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


if __name__ == "__main__":
    exit_with_parent()
    serve(socket.socket(fileno=int(sys.argv[1])))
