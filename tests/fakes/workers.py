"""Worker processes with stand-ins for GPUs, and calls to them that end as Ray's calls end."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import ray

START_DEADLINE_S = 300.0
# vLLM is imported once, in a process that all of these are forked from.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.fakes.workers", "rlsys.rollout.engine.receiver", "vllm.v1.worker.gpu_worker"])


failures: list[str] = []


class Worker:
    """A process that holds one object; a call runs a function of this object there."""

    def __init__(self, build: Callable[..., Any], *args: Any) -> None:
        self._pipe, theirs = FORKED.Pipe()
        self._number = 0  # of the last call
        self.process = FORKED.Process(target=_serve, args=(theirs, build, args), daemon=True)
        self.process.start()
        theirs.close()

    def wait_started(self) -> None:
        assert self._pipe.poll(START_DEADLINE_S)
        _, status, error = self._pipe.recv()
        assert status == "done", error

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function(object, *args)` there. Raises RayTaskError for its error, ActorDiedError for its death."""
        self._number += 1
        number = self._number
        try:
            self._pipe.send((number, function, args))
            answered = -1
            while answered < number:  # there may be answers that nobody waited for
                await self._readable()
                answered, status, result = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise ray.exceptions.ActorDiedError from error
        if status == "failed":
            raise ray.exceptions.RayTaskError(function.__name__, *result)
        return result

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._pipe.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._pipe.fileno())

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self._pipe.close()


def _serve(pipe: Connection, build: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch

    from tests.fakes import memory, nccl, streams

    torch.set_num_threads(1)
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # as rlsys.build.placement sets it for ipc
    streams.install()
    nccl.install()
    torch.multiprocessing.reductions.reduce_tensor = memory.GPU.reduce_tensor
    with streams.Kernels():
        number, function, arguments, held = 0, build, args, ()
        while True:
            try:
                result = function(*held, *arguments)
                if not held:
                    held, result = (result,), None
                pipe.send((number, "done", result))
            except Exception as error:
                failures.append(str(error))
                pipe.send((number, "failed", (traceback.format_exc(), error)))
            try:
                while not pipe.poll(0.001):
                    streams.go_on()
                number, function, arguments = pipe.recv()
            except EOFError:
                return


def failed_calls(held: Any) -> list[str]:
    """Return the errors of this process's calls so far."""
    return failures
