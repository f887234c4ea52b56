"""SpanRecorder that a worker records."""

from __future__ import annotations

import pytest

from rlsys.runtime.spans import MAX_KEPT, SpanRecorder


def test_spans_are_told_once_and_measured_when_the_block_fails() -> None:
    ticks = iter([1.0, 3.0, 4.0, 4.5])
    spans = SpanRecorder(lambda: next(ticks))
    with spans.span("forward"):
        pass
    with pytest.raises(ValueError, match="in the block"), spans.span("backward"):
        raise ValueError("in the block")
    assert spans.take() == [("forward", 1.0, 3.0), ("backward", 4.0, 4.5)]
    assert spans.take() == []


def test_what_nobody_asks_for_does_not_grow() -> None:
    spans = SpanRecorder()
    for _ in range(MAX_KEPT + 5):
        spans.add("x", 0.0, 1.0)
    assert len(spans.take()) == MAX_KEPT
