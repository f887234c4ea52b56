"""The driver's comparison of what was sent and received, and its message."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlsys.errors import WeightMismatchError
from rlsys.weights.manifest import Entry
from rlsys.weights.receipt import Receipt, check_receipts

CUT = [[Entry("a", torch.uint8, (1,)), Entry("b", torch.uint8, (1,))], [Entry("c", torch.uint8, (1,))]]
SENT = [11, -12]
GOOD = Receipt(SENT, [], [], 1.0)


def test_equal_sums_pass() -> None:
    check_receipts("rollout/0", [GOOD, GOOD], SENT, CUT, 3)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (replace(GOOD, checksums=[11, 12]), ["bytes of 1 of 2 buckets arrived changed, those of c"]),
        (replace(GOOD, checksums=[1, 2]), ["2 of 2 buckets", "a, b, c"]),
        (replace(GOOD, checksums=[11]), ["2 buckets were sent and 1 received"]),
        (replace(GOOD, missing=["model.norm.weight"]), ["model.norm.weight received no weights and kept older ones"]),
        (replace(GOOD, missing=list("abcdefgh")), ["a, b, c, d, e, f and 2 more"]),
        (replace(GOOD, different=["layer 4"]), ["hold other numbers: layer 4", "Its loader did not use them"]),
    ],
)
def test_the_message_names_version_engine_rank_and_parameters(bad: Receipt, words: list[str]) -> None:
    with pytest.raises(WeightMismatchError) as caught:
        check_receipts("rollout/1", [GOOD, bad], SENT, CUT, 3)
    for word in ["policy version 3 did not reach rollout/1 (rank 1 of 2) whole", "weights.verify=false", *words]:
        assert word in str(caught.value)
