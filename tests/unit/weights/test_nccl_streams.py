"""Over NCCL nothing is read on another CUDA stream than it was written on, unless that stream waits for it.

There is no GPU here, so streams are labels: every operation on a tensor is noted with the label that is current, and
whoever reads must have written on the same label, or have waited for it. Everything else is what runs on GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlsys.weights.checksum import checksum
from rlsys.weights.manifest import Entry, buckets, pack_bucket, total_bytes, views
from rlsys.weights.nccl import NcclChannel
from rlsys.weights.sender import WeightSender

SIZES = [3, 5, 2, 7, 4, 4, 1, 9, 3, 3, 6, 2, 5, 5, 8, 1, 2, 4, 3, 6]  # elements of each parameter
BUCKET_BYTES = 24


class Event:
    """A CUDA event: whoever asks for it has waited for what the stream was given before it."""

    def __init__(self, stream: Stream, streams: Streams) -> None:
        self._stream, self._streams, self._clock = stream, streams, streams.clock

    def query(self) -> bool:
        self._streams.finished[self._stream.name] = self._clock
        return True


class Stream:
    """A CUDA stream that is only a name."""

    def __init__(self, name: str, streams: Streams) -> None:
        self.name = name
        self.cuda_stream = 0
        self._streams = streams

    def synchronize(self) -> None:
        self.record_event().query()

    def record_event(self) -> Event:
        return Event(self, self._streams)

    def wait_stream(self, other: Stream) -> None:
        self._streams.waited[self.name, other.name] = self._streams.clock


class Streams(TorchDispatchMode):
    """Notes on which stream each tensor was written, and every read that may come too early."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0
        self.current = Stream("default", self)
        self.early: list[str] = []
        self.finished: dict[str, int] = {}  # by stream: the host has waited for what it was given until then
        self.waited: dict[tuple[str, str], int] = {}  # the first stream has waited for the second until then
        self._written: dict[int, tuple[str, int]] = {}  # by memory
        self._kept: list[torch.Tensor] = []  # so that no memory is used twice

    @contextlib.contextmanager
    def use(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def read(self, tensor: torch.Tensor, what: str) -> None:
        stream, time = self._written.get(tensor.untyped_storage().data_ptr(), (self.current.name, 0))
        known = max(self.finished.get(stream, -1), self.waited.get((self.current.name, stream), -1))
        if stream != self.current.name and time > known:
            self.early.append(f"{what} reads on {self.current.name} what was written on {stream}")

    def write(self, tensor: torch.Tensor) -> None:
        self._written[tensor.untyped_storage().data_ptr()] = (self.current.name, self.clock)
        self._kept.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.clock += 1
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns):
            return result  # a view: no kernel runs
        for tensor in tensors_in((args, kwargs)):
            self.read(tensor, str(func))
        for tensor in tensors_in(result):
            self.write(tensor)
        return result


def tensors_in(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Communicator:
    """NCCL's end of rank 0: queues a read of the bytes on a stream."""

    disabled = False

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.sent: list[torch.Tensor] = []
        self.sent_at: list[int] = []

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Stream | None = None) -> None:
        assert src == 0
        with self._streams.use(stream or self._streams.current):
            self._streams.read(tensor, "NCCL")
            self.sent.append(tensor.clone())
            self.sent_at.append(self._streams.clock)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """Labels in the place of every way to a CUDA stream."""
    from vllm.distributed.weight_transfer import packed_tensor

    streams = Streams()
    alternating = (Stream("A", streams), Stream("B", streams))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: streams.current)
    monkeypatch.setattr(torch.cuda, "stream", streams.use)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda *_: alternating)
    return streams


@pytest.fixture
def communicator(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> Communicator:
    from vllm.distributed.weight_transfer import nccl_common

    communicator = Communicator(streams)
    monkeypatch.setattr(nccl_common, "stateless_init_process_group", lambda *_: communicator)
    return communicator


def module() -> torch.nn.Module:
    return torch.nn.ParameterDict({f"l{i}": torch.nn.Parameter(torch.rand(size)) for i, size in enumerate(SIZES)})


def trained(model: torch.nn.Module) -> None:
    """The optimizer's last kernels, queued on the default stream and perhaps still running."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sender_reads_nothing_too_early(streams: Streams, communicator: Communicator, dtype: torch.dtype) -> None:
    model = module()
    sender = WeightSender(model, dtype, 0, BUCKET_BYTES)
    sender.open("nccl", "localhost", 1, 2, 60.0)
    with streams:
        trained(model)
        sums = sender.send()
    assert streams.early == []
    # It has waited until the GPU had sent the last one; the sums are read after that.
    assert communicator.sent_at[-1] <= streams.finished["default"]
    assert sums == [int(checksum(buffer)) for buffer in communicator.sent]
    # The engines cut the manifest alike, so every transfer is one bucket.
    cut = buckets(sender.manifest(), BUCKET_BYTES)
    assert len(communicator.sent) == len(cut) > 5
    pairs = zip(communicator.sent, cut, strict=True)
    received = [named for buffer, bucket in pairs for named in views(buffer, bucket)]
    for (name, tensor), (expected_name, parameter) in zip(received, model.named_parameters(), strict=True):
        assert name == expected_name
        assert torch.equal(tensor, parameter.detach().to(dtype))


def test_the_receiver_reads_nothing_too_early(streams: Streams, communicator: Communicator) -> None:
    cut = buckets([Entry(f"l{i}", torch.float32, (size,)) for i, size in enumerate(SIZES)], BUCKET_BYTES)
    channel = NcclChannel("localhost", 1, 1, 2, torch.device("cpu"), deadline_s=60.0)
    order = []
    with streams:
        for bucket, buffer in channel.received(cut):
            order.append((len(communicator.sent), bucket))
            assert buffer.numel() == total_bytes(bucket)
            torch.cat([tensor for _, tensor in views(buffer, bucket)])
    assert streams.early == []
    # One transfer is always under way while a bucket is loaded.
    assert order == [(min(number + 2, len(cut)), bucket) for number, bucket in enumerate(cut)]


def test_the_labels_find_a_bucket_that_is_read_on_two_streams(streams: Streams) -> None:
    """vLLM's own producer pulls tensors on two streams in turn, and cuts chunks elsewhere than we cut buckets."""
    from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

    tensors = [torch.rand(size) for size in SIZES]
    cut = buckets([Entry(f"l{i}", torch.float32, (size,)) for i, size in enumerate(SIZES)], BUCKET_BYTES)
    left = iter(tensors)
    with streams:
        packed = ((bucket, pack_bucket([next(left) for _ in bucket])) for bucket in cut)
        packed_nccl_broadcast_producer(
            iterator=((name, part.clone()) for bucket, buffer in packed for name, part in views(buffer, bucket)),
            group=Communicator(streams),
            src=0,
            post_iter_func=lambda named: named[1],
            buffer_size_bytes=BUCKET_BYTES,
        )
    assert any("reads on B what was written on A" in read for read in streams.early)
