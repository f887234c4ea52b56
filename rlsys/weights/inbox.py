"""One broadcast on its way into an engine: a thread receives, whoever loads the weights takes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from rlsys.weights.manifest import Entry

Received = tuple[Sequence[Entry], torch.Tensor]


class Source(Protocol):
    """The receiving end of a channel; every call has the channel's deadline."""

    def broadcast(self, tensor: torch.Tensor) -> None: ...


class Inbox:
    """Buckets in the order they were sent.

    The thread never waits for the taker: every bucket has a room of its own, so that a transfer can end while the
    engine still generates.

    Args:
        buckets: what each bucket holds and the buffer to fill.
    """

    def __init__(self, source: Source, buckets: Sequence[Received]) -> None:
        self._source = source
        self._buckets = buckets
        self._received: queue.SimpleQueue[Received | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self.transfer_s = 0.0
        self.waited_s = 0.0  # that the taker stood still for
        self._thread = threading.Thread(target=self._receive, name="weights", daemon=True)
        self._thread.start()

    def is_done(self) -> bool:
        """Whether every bucket is there. Raises RuntimeError with the cause when the transfer failed."""
        self._check()
        return not self._thread.is_alive()

    def __iter__(self) -> Iterator[Received]:
        """Every bucket once, as it comes in. Raises RuntimeError with the cause when the transfer failed."""
        while True:
            started = time.perf_counter()
            received = self._received.get()
            self.waited_s += time.perf_counter() - started
            if received is None:
                break
            yield received
        self._check()

    def _receive(self) -> None:
        started = time.perf_counter()
        try:
            for bucket, buffer in self._buckets:
                self._source.broadcast(buffer)
                self._received.put((bucket, buffer))
        except Exception as error:
            self._error = error
        finally:
            self.transfer_s = time.perf_counter() - started
            self._received.put(None)

    def _check(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"the transfer failed: {self._error}") from self._error
