"""Slots for episodes: each has a process of its own with the environment's code, and none is waited for without end.

A process whose episode has ended in order serves another; any other is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

from rlsys.environments.entry import EnvironmentSpec
from rlsys.episodes.process import LENGTH, MAX_REPLY
from rlsys.errors import WorkerError
from rlsys.runtime.logs import end_of_own_log
from rlsys.runtime.processes import kill_group, start_process

START_DEADLINE_S = 300.0  # for the imports
FORK_DEADLINE_S = 60.0  # on a busy machine
MAX_EPISODES = 256  # of one process: what an environment leaks ends with it


class StepError(Exception):
    """An environment's code failed: it raised, answered something else than it may, or its process died."""


class StepTimeoutError(StepError):
    """An environment's code gave no answer in time."""


class UnreadableError(Exception):
    """The environment could not understand the policy's message."""


class Slot:
    """One episode's process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.pid = 0
        self._num_episodes = 0
        self._is_between = True  # no episode has begun, or the last one has ended in order

    @property
    def is_reusable(self) -> bool:
        """Whether another episode may be played here."""
        return self._is_between and self._num_episodes < MAX_EPISODES and not self._reader.at_eof()

    async def call(self, what: str, given: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
        """Return the environment's answer to `start`, `step` or `close`.

        Raises:
            UnreadableError: the environment raised ParseError.
            StepTimeoutError: no answer in time; the process is of no more use.
            StepError: anything else.
        """
        message, self._is_between = pickle.dumps((what, dict(given))), False
        try:
            async with asyncio.timeout(deadline_s):
                self._writer.write(LENGTH.pack(len(message)) + message)
                await self._writer.drain()
                reply = await self.receive()
        except OSError as error:  # TimeoutError is one, too
            if not isinstance(error, TimeoutError):
                raise StepError(f"the environment's process died{end_of_own_log()}") from error
            raise StepTimeoutError(f"`{what}` gave no answer within {deadline_s:g} s") from error
        if "parse_error" in reply:
            raise UnreadableError(reply["parse_error"])
        if "error" in reply:
            raise StepError(f"`{what}` raised {reply['error']}\n{reply['traceback']}")
        if what == "close":
            self._is_between, self._num_episodes = True, self._num_episodes + 1
        return reply

    async def receive(self) -> dict[str, Any]:
        """Return the next reply; raises StepError when the process is gone or replies too much."""
        try:
            size = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))[0]
            if size > MAX_REPLY:
                raise StepError(f"a reply of {size} bytes; the most is {MAX_REPLY}")
            reply: dict[str, Any] = json.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise StepError(f"the environment's process died{end_of_own_log()}") from error
        return reply

    def end(self) -> None:
        """Kill the process with everything that it has started."""
        self._writer.close()
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


class Slots:
    """A limited number of slots, and the process that is forked for them."""

    def __init__(self, spec: EnvironmentSpec, num_slots: int) -> None:
        self._spec = spec
        self._free = asyncio.Semaphore(num_slots)
        self._process: subprocess.Popen[bytes] | None = None
        self._template: socket.socket | None = None
        self._starting = asyncio.Lock()
        self._idle: list[Slot] = []
        self.num_open = 0

    @property
    def pid(self) -> int | None:
        """The process that is forked; None before the start."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Import the environment's code; raises WorkerError where that fails."""
        self.close()
        ours, theirs = socket.socketpair()
        # -P: not the working directory's modules before the libraries. Unbuffered: what was printed is in the log.
        command = [sys.executable, "-u", "-P", "-m", "rlsys.episodes.process", str(theirs.fileno())]
        self._process = start_process(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours.dup())
        spec, slot = pickle.dumps(self._spec), Slot(reader, writer)
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                writer.write(LENGTH.pack(len(spec)) + spec)
                await writer.drain()
                reply = await slot.receive()
        except (TimeoutError, StepError) as error:
            ours.close()
            self.close()
            raise WorkerError(f"the environment cannot be loaded: {type(error).__name__} {error}") from error
        finally:
            writer.close()
        if "error" in reply:
            ours.close()
            self.close()
            raise WorkerError(f"the environment cannot be loaded: {reply['error']}\n{reply['traceback']}")
        ours.setblocking(True)  # a message of one byte fits always
        self._template = ours

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Slot]:
        """Give a slot when one is free; raises StepError when no process can be had for it."""
        async with self._free:
            slot = self._idle_one() or await self._forked()
            self.num_open += 1
            try:
                yield slot
            finally:
                self.num_open -= 1
                if slot.is_reusable:
                    self._idle.append(slot)
                else:
                    slot.end()

    def close(self) -> None:
        """Kill the process that is forked, and with it every fork."""
        while self._idle:
            self._idle.pop().end()
        if self._template is not None:
            self._template.close()
            self._template = None
        if self._process is not None:
            kill_group(self._process)
            self._process = None

    def _idle_one(self) -> Slot | None:
        while self._idle:
            slot = self._idle.pop()
            if slot.is_reusable:
                return slot
            slot.end()  # its process has died meanwhile
        return None

    async def _forked(self) -> Slot:
        template = self._template
        try:
            return await self._fork(template)
        except (OSError, TimeoutError, StepError):  # the process that is forked has died: it is started once more
            await self._start_again(template)
        try:
            return await self._fork(self._template)
        except (OSError, TimeoutError, StepError) as error:
            raise StepError(f"no process for the environment: {type(error).__name__}: {error}") from error

    async def _fork(self, template: socket.socket | None) -> Slot:
        if template is None:
            raise StepError("the environment's code is not loaded")
        ours, theirs = socket.socketpair()
        slot = Slot(*await asyncio.open_connection(sock=ours))
        try:
            with theirs:
                socket.send_fds(template, [b"f"], [theirs.fileno()])
            async with asyncio.timeout(FORK_DEADLINE_S):
                # Before any code of the environment's runs there: later it could name another process.
                slot.pid = int((await slot.receive())["pid"])
        except BaseException:
            slot.end()
            raise
        return slot

    async def _start_again(self, broken: socket.socket | None) -> None:
        async with self._starting:
            if self._template is broken:  # else another episode has done it
                try:
                    await self.start()
                except WorkerError as error:
                    raise StepError(str(error)) from error
