"""What a sender packs, read back from its buckets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rlsys.weights.manifest import Entry, views
from rlsys.weights.sender import PackedBuckets, WeightSender


class Kept:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def buffers(self, sizes: Sequence[int]) -> list[torch.Tensor | None]:
        return [None] * len(sizes)

    def send(self, packed: PackedBuckets) -> None:
        for bucket, buffer in packed:
            self.tensors |= {name: tensor.clone() for name, tensor in views(buffer, bucket)}


class Routed(nn.Module):
    """A model whose router must not be rounded, as transformers marks it."""

    _keep_in_fp32_modules_strict = ("gate",)

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expert = nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)


def test_what_an_architecture_keeps_in_float32_is_sent_unrounded() -> None:
    module, channel = Routed(), Kept()
    sender = WeightSender(module, torch.bfloat16, rank=0, bucket_bytes=50)
    sender._channel = channel
    sender.send()
    assert sender.manifest() == [
        Entry("gate.weight", torch.float32, (5, 3), 0),
        Entry("expert.weight", torch.bfloat16, (5, 3), 1),
    ]
    assert torch.equal(channel.tensors["gate.weight"], module.gate.weight)
    assert torch.equal(channel.tensors["expert.weight"], module.expert.weight.to(torch.bfloat16))
