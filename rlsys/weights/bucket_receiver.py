"""Reception of one broadcast in an engine: a thread receives buckets while the engine still generates."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from rlsys.weights.manifest import Entry

Received = tuple[Sequence[Entry], torch.Tensor]  # a bucket's parameters, and its bytes


class BucketSource(Protocol):
    """The receiving end of a channel; every call has the channel's deadline."""

    def broadcast(self, buffer: torch.Tensor) -> None:
        """Fill the buffer with the next bucket's bytes."""
        ...

    def close(self) -> None:
        """Leave the group; peers that wait for this rank fail."""
        ...


class BucketReceiver:
    """The buckets of one broadcast, in the order that they were sent; iterating waits for each.

    The thread never waits for the consumer: every bucket has a buffer of its own. So a transfer can end while the
    engine still generates, and generation stops only for loading.

    Attributes:
        transfer_s: seconds that the transfer took.
        waited_s: seconds that the consumer waited for buckets.
    """

    def __init__(self, source: BucketSource, buckets: Sequence[Received]) -> None:
        """Start to receive.

        Args:
            source: the channel.
            buckets: the parameters of each bucket, and the buffer to fill with their bytes.
        """
        self._source = source
        self._buckets = buckets
        # None marks the end.
        self._received: queue.SimpleQueue[Received | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self.transfer_s = 0.0
        self.waited_s = 0.0
        # A daemon: an engine that ends must not wait for a broadcast.
        self._thread = threading.Thread(target=self._receive, name="weights", daemon=True)
        self._thread.start()

    def is_done(self) -> bool:
        """Return whether every bucket has arrived. Raises RuntimeError with the cause when the transfer failed."""
        self._check()
        return not self._thread.is_alive()

    def __iter__(self) -> Iterator[Received]:
        """Yield every bucket once, as it arrives. Raises RuntimeError with the cause when the transfer failed."""
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
            self._source.close()  # a failure is all peers': none must wait for another that has failed
        finally:
            self.transfer_s = time.perf_counter() - started
            self._received.put(None)  # the end, also after an error: the consumer must not wait for more

    def _check(self) -> None:
        if self._error is not None:
            raise RuntimeError(f"the transfer of weights failed: {self._error}") from self._error
