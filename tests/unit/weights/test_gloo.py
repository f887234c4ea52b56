"""The broadcast group between two processes, and its deadline."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from multiprocessing.connection import Connection

import pytest
import torch
from torch import nn

from rlsys.weights.checksum import checksum
from rlsys.weights.gloo import GlooChannel, abandon
from rlsys.weights.manifest import buckets, total_bytes, views
from rlsys.weights.sender import WeightSender
from rlsys.weights.shared_memory import SharedMemory

BUCKET_BYTES = 24


def make_module() -> nn.Module:
    """Parameters of 3 * 4 and 3 floats, one buffer's worth and more."""
    module = nn.Linear(4, 3)
    with torch.no_grad():
        module.weight.copy_(torch.arange(12.0).view(3, 4))
        module.bias.copy_(torch.tensor([0.5, -0.5, 1e-3]))
    return module


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def receive(port: int, rank: int, world_size: int, is_remote: bool, pipe: Connection) -> None:
    """Run a receiving rank: receive every bucket of the module's manifest twice and send back the result.

    A remote one cannot open the sender's memory.
    """
    if is_remote:
        SharedMemory.attach = classmethod(lambda cls, address: None)  # type: ignore[method-assign, assignment]
    channel = GlooChannel("127.0.0.1", port, rank, world_size, deadline_s=60.0)
    manifest = WeightSender(make_module(), torch.bfloat16, rank=rank, bucket_bytes=BUCKET_BYTES).manifest()
    cut = buckets(manifest, BUCKET_BYTES)
    for _ in range(2):
        received, sums = {}, []
        buffers = channel.buffers([total_bytes(bucket) for bucket in cut])
        for bucket, buffer in zip(cut, buffers, strict=True):
            channel.broadcast(buffer)
            received |= {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in views(buffer, bucket)}
            sums.append(int(checksum(buffer)))
        pipe.send((received, sums))


ALONE = [pytest.param([is_remote], marks=pytest.mark.long) for is_remote in (False, True)]


@pytest.mark.parametrize(
    "are_remote", [*ALONE, [False, True], pytest.param([True, False, True], marks=pytest.mark.long)]
)
def test_a_module_is_sent_bucket_by_bucket(are_remote: list[bool]) -> None:
    """To ranks on this machine, elsewhere, and to both at once."""
    context = multiprocessing.get_context("spawn")
    port, world_size = free_port(), 1 + len(are_remote)
    pipes, children = [], []
    for rank, is_remote in enumerate(are_remote, start=1):
        ours, theirs = context.Pipe()
        pipes.append(ours)
        arguments = (port, rank, world_size, is_remote, theirs)
        children.append(context.Process(target=receive, args=arguments, daemon=True))
        children[-1].start()
    try:
        module = make_module()
        sender = WeightSender(module, torch.bfloat16, rank=0, bucket_bytes=BUCKET_BYTES)
        # 12 and 3 numbers of 2 bytes: 24 fill a bucket, 6 go into the next
        assert [len(bucket) for bucket in buckets(sender.manifest(), BUCKET_BYTES)] == [1, 1]
        sender.open("gloo", "127.0.0.1", port, world_size, deadline_s=60.0)
        for scale in (1.0, 2.0):
            with torch.no_grad():
                module.weight.mul_(scale)
            sums = sender.send()
            expected = {
                name: ("torch.bfloat16", parameter.detach().to(torch.bfloat16).tolist())
                for name, parameter in module.named_parameters()
            }
            for pipe in pipes:
                assert pipe.poll(60.0)
                assert pipe.recv() == (expected, sums)
        for child in children:
            child.join(timeout=30.0)
            assert child.exitcode == 0
    finally:
        for child in children:
            child.kill()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_peer_that_never_joins_is_an_error_at_the_deadline(rank: int) -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError):
        GlooChannel("127.0.0.1", free_port(), rank=rank, world_size=2, deadline_s=0.5)
    assert 0.3 < time.monotonic() - started < 10.0  # a busy machine may be late, an endless wait is not


@pytest.mark.parametrize("rank", [0, 1])
def test_a_group_that_is_given_up_while_it_meets_fails_at_once(rank: int) -> None:
    """The third rank never comes; the first, or both others, wait for it."""
    port, failures = free_port(), []

    def join(own: int) -> None:
        try:
            GlooChannel("127.0.0.1", port, own, world_size=3, deadline_s=100.0)
        except RuntimeError as error:
            failures.append(str(error))

    joining = [threading.Thread(target=join, args=(own,)) for own in range(rank + 1)]
    started = time.monotonic()
    for thread in joining:
        thread.start()
    time.sleep(0.5)
    assert failures == []
    abandon("127.0.0.1", port)
    for thread in joining:
        thread.join(60.0)
    assert len(failures) == rank + 1
    assert "a rank of it is gone" in failures[0]
    assert time.monotonic() - started < 90.0


def test_giving_up_a_group_that_never_met_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsys.weights.gloo.ABANDON_DEADLINE_S", 0.2)
    with pytest.raises(RuntimeError):
        abandon("127.0.0.1", free_port())


def test_a_rank_that_does_not_send_gathers_and_sends_nothing() -> None:
    sender = WeightSender(make_module(), torch.float32, rank=1, bucket_bytes=BUCKET_BYTES)
    sender.open("gloo", "127.0.0.1", port=1, world_size=2, deadline_s=0.1)  # joins nothing: the group is rank 0's
    assert sender.send() == []
    assert [entry.name for entry in sender.manifest()] == ["weight", "bias"]
