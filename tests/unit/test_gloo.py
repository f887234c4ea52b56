"""The broadcast group between two processes, and its deadline."""

from __future__ import annotations

import multiprocessing
import socket
import time
from multiprocessing.connection import Connection

import pytest
import torch
from torch import nn

from rlsys.weights.gloo import GlooChannel
from rlsys.weights.manifest import buckets, unpack
from rlsys.weights.sender import WeightSender

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


def receive(port: int, pipe: Connection) -> None:
    """The receiving rank: every bucket of the module's manifest, twice; sends back what came."""
    channel = GlooChannel("127.0.0.1", port, rank=1, world_size=2, deadline_s=60.0)
    manifest = WeightSender(make_module(), torch.bfloat16, rank=1, bucket_bytes=BUCKET_BYTES).manifest()
    for _ in range(2):
        received = {}
        for bucket in buckets(manifest, BUCKET_BYTES):
            buffer = torch.zeros(sum(entry.num_bytes for entry in bucket), dtype=torch.uint8)
            channel.broadcast(buffer)
            received |= {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in unpack(buffer, bucket)}
        pipe.send(received)


def test_a_module_travels_bucket_by_bucket() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    port = free_port()
    child = context.Process(target=receive, args=(port, theirs), daemon=True)
    child.start()
    try:
        module = make_module()
        sender = WeightSender(module, torch.bfloat16, rank=0, bucket_bytes=BUCKET_BYTES)
        # 12 and 3 numbers of 2 bytes: 24 fill a bucket, 6 go into the next
        assert [len(bucket) for bucket in buckets(sender.manifest(), BUCKET_BYTES)] == [1, 1]
        sender.open("gloo", "127.0.0.1", port, world_size=2, deadline_s=60.0)
        for scale in (1.0, 2.0):
            with torch.no_grad():
                module.weight.mul_(scale)
            sender.send()
            assert ours.poll(60.0)
            expected = {name: p.detach().to(torch.bfloat16) for name, p in module.named_parameters()}
            assert ours.recv() == {name: ("torch.bfloat16", value.tolist()) for name, value in expected.items()}
        child.join(timeout=30.0)
        assert child.exitcode == 0
    finally:
        child.kill()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_peer_that_never_joins_is_an_error_at_the_deadline(rank: int) -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError):
        GlooChannel("127.0.0.1", free_port(), rank=rank, world_size=2, deadline_s=0.5)
    assert 0.3 < time.monotonic() - started < 10.0  # a busy machine may be late, an endless wait is not


def test_a_rank_that_does_not_send_gathers_and_sends_nothing() -> None:
    sender = WeightSender(make_module(), torch.float32, rank=1, bucket_bytes=BUCKET_BYTES)
    sender.open("gloo", "127.0.0.1", port=1, world_size=2, deadline_s=0.1)  # joins nothing: the group is rank 0's
    sender.send()
    assert [entry.name for entry in sender.manifest()] == ["weight", "bias"]
