"""A broadcast is received in the background, and its failure is raised to whoever waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from rlsys.weights.bucket_receiver import BucketReceiver
from rlsys.weights.manifest import Entry, total_bytes

CUT = [[Entry("a", torch.uint8, (4,))], [Entry("b", torch.uint8, (2,)), Entry("c", torch.uint8, (1,))]]


def buckets() -> list[tuple[list[Entry], torch.Tensor]]:
    return [(bucket, torch.empty(total_bytes(bucket), dtype=torch.uint8)) for bucket in CUT]


class Sender:
    """A channel that fills each bucket with its number when the test lets it; `fails_at` breaks the connection."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.may_send = threading.Semaphore(0)
        self.is_closed = False
        self._number = 0
        self._fails_at = fails_at

    def close(self) -> None:
        self.is_closed = True

    def broadcast(self, buffer: torch.Tensor) -> None:
        assert self.may_send.acquire(timeout=30)
        if self._number == self._fails_at:
            raise RuntimeError("Connection closed by peer")
        buffer.fill_(self._number)
        self._number += 1


def until(true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited for too long")


def test_buckets_come_in_order_as_they_are_sent() -> None:
    sender = Sender()
    receiver = BucketReceiver(sender, buckets())
    assert not receiver.is_done()
    sender.may_send.release()
    taken = iter(receiver)
    bucket, buffer = next(taken)  # the first is there before the second is sent
    assert ([entry.name for entry in bucket], buffer.tolist()) == (["a"], [0, 0, 0, 0])
    sender.may_send.release()
    bucket, buffer = next(taken)
    assert ([entry.name for entry in bucket], buffer.tolist()) == (["b", "c"], [1, 1, 1])
    assert list(taken) == []
    assert receiver.waited_s > 0


def test_all_of_it_can_come_before_anything_is_taken() -> None:
    sender = Sender()
    sender.may_send.release(2)
    receiver = BucketReceiver(sender, buckets())
    until(receiver.is_done)
    assert [buffer.tolist() for _, buffer in receiver] == [[0] * 4, [1] * 3]


def test_a_broken_transfer_is_an_error_with_its_cause() -> None:
    sender = Sender(fails_at=1)
    sender.may_send.release(2)
    receiver = BucketReceiver(sender, buckets())
    taken = iter(receiver)
    next(taken)
    with pytest.raises(RuntimeError, match="the transfer of weights failed: Connection closed by peer"):
        next(taken)
    with pytest.raises(RuntimeError, match="the transfer of weights failed: Connection closed by peer"):
        until(receiver.is_done)
