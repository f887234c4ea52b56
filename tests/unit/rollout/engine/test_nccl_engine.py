"""An engine's end of the NCCL channel, without vLLM around it."""

from __future__ import annotations

from typing import Any

from rlsys.rollout.engine.receiver import NcclEngine


class Channel:
    """A channel that counts how often it was left."""

    def __init__(self) -> None:
        self.times_closed = 0

    def close(self) -> None:
        self.times_closed += 1


def test_an_engine_leaves_the_group_once() -> None:
    engine: Any = NcclEngine.__new__(NcclEngine)
    engine._channel = channel = Channel()
    engine.shutdown()
    engine.shutdown()  # vLLM may ask again
    assert channel.times_closed == 1
