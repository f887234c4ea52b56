"""CUDA streams on a CPU that are as late as they may be.

A kernel runs only when somebody waits for its stream, and then in the order of the stream. So code that reads, on the
host, on another stream or in another process, what it has not waited for gets what was in the memory before.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from tests.fakes import memory

UUID = "GPU-0"
FREE_BYTES = 2**30
HOST_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)

_handles = itertools.count(1)
_by_handle: dict[int, Stream] = {}
_thread = threading.local()


class Event:
    """A CUDA event: a place in a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._is_past = False
        stream.add(self._pass)

    def query(self) -> bool:
        self._stream.advance(lambda: self._is_past)
        return self._is_past

    def _pass(self) -> bool:
        self._is_past = True
        return True


class Stream:
    """A CUDA stream. Work is a function that returns False while it waits for another rank."""

    def __init__(self, device: Any = None) -> None:
        self.cuda_stream = next(_handles)
        _by_handle[self.cuda_stream] = self
        self._queue: deque[Callable[[], bool]] = deque()

    def add(self, work: Callable[[], bool]) -> None:
        self._queue.append(work)

    def advance(self, is_enough: Callable[[], bool]) -> None:
        with _disable_current_modes(), torch.no_grad():
            while self._queue and not is_enough() and self._queue[0]():
                self._queue.popleft()

    def query(self) -> bool:
        self.advance(lambda: False)
        return not self._queue

    def synchronize(self) -> None:
        while not self.query():
            time.sleep(0.0005)

    def record_event(self) -> Event:
        return Event(self)

    def wait_stream(self, other: Stream) -> None:
        self.add(other.record_event().query)


class Kernels(TorchDispatchMode):
    """Inside this context operations on CPU tensors are queued on the current stream, as kernels are."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(leaf.is_meta for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)):
            return func(*args, **kwargs)
        if func in HOST_READS:
            current_stream().synchronize()
            return func(*args, **kwargs)
        aliases = [value.alias_info for value in func._schema.returns if value.alias_info is not None]
        if func.overloadpacket is torch.ops.aten.set_ or any(not alias.is_write for alias in aliases):
            return func(*args, **kwargs)  # a view, which no kernel makes
        later = tree_map(memory.GPU.unheld, (args, kwargs))
        if aliases:
            self._queue(lambda: func(*later[0], **later[1]))
            return kwargs.get("out", args[0])
        # Run at once for the shape, with whatever the memory holds, and again when the stream gets there.
        results = func(*args, **kwargs)
        if not isinstance(results, torch.Tensor) or results.is_meta:
            return results
        result = memory.GPU.place(results)
        target = memory.GPU.unheld(result)
        self._queue(lambda: target.copy_(func(*later[0], **later[1])))
        return result

    def _queue(self, kernel: Callable[[], Any]) -> None:
        def run() -> bool:
            kernel()
            return True

        current_stream().add(run)


def current_stream(device: Any = None) -> Stream:
    """Return the thread's current stream; at first the default stream, which all threads share."""
    stream: Stream = getattr(_thread, "current", DEFAULT)
    return stream


def set_stream(stream: Stream) -> None:
    """Replace the thread's current stream, as torch and vLLM both know it."""
    _thread.current = _thread.of_vllm = stream


@contextlib.contextmanager
def use_stream(stream: Stream) -> Iterator[None]:
    """Replace the thread's current stream while the context is open."""
    before = current_stream()
    set_stream(stream)
    yield
    set_stream(before)


def vllm_stream() -> Stream:
    """Return what vLLM's `current_stream` does: a new stream, which it makes current, in a thread's first call."""
    if not hasattr(_thread, "of_vllm"):
        stream = Stream()
        stream.wait_stream(current_stream())
        set_stream(stream)
    known: Stream = _thread.of_vllm
    return known


def by_handle(handle: int) -> Stream:
    """Return the stream that C functions know by this number."""
    return _by_handle[handle]


def synchronize_all(device: Any = None) -> None:
    """Wait for everything that was queued."""
    for stream in list(_by_handle.values()):
        stream.synchronize()


def go_on() -> None:
    """Let all streams but the default one go on: a GPU works while the host does nothing."""
    for stream in list(_by_handle.values()):
        if stream is not DEFAULT:
            stream.query()


def install() -> None:
    """Put streams and one device in the place of torch's, in this whole process."""
    gpu: dict[str, Any] = {
        "is_available": lambda: True,
        "current_stream": current_stream,
        "set_stream": set_stream,
        "stream": use_stream,
        "Stream": Stream,
        "current_device": lambda: 0,
        "get_device_properties": lambda device: SimpleNamespace(uuid=UUID),
        "mem_get_info": lambda: (FREE_BYTES, 2 * FREE_BYTES),
        "_lazy_init": lambda: None,
    }
    for name, value in gpu.items():
        setattr(torch.cuda, name, value)
    torch.accelerator.synchronize = synchronize_all
    torch.accelerator.current_device_index = lambda: 0


DEFAULT = Stream()
