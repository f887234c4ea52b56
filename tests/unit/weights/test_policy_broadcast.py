"""An engine leaves between two broadcasts, and not while it is being compared."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from rlsys.metrics.step import StageClock
from rlsys.weights.policy_broadcast import PolicyBroadcast
from tests.unit.virtual_time import run_virtual


def test_it_leaves_after_a_broadcast_and_its_comparison() -> None:
    events: list[str] = []

    class Broadcaster:
        async def broadcast(self, policy_version: int) -> dict[str, float]:
            await asyncio.sleep(5.0)
            events.append("broadcast")
            return {}

    class Canary:
        begun = 0.0

        def begin(self, policy_version: int) -> None:
            self.begun = asyncio.get_running_loop().time()

        async def finish(self) -> None:
            await asyncio.sleep(3.0 + self.begun - asyncio.get_running_loop().time())
            events.append("compared")

        def take(self) -> dict[str, float]:
            return {}

    async def main() -> None:
        learners = SimpleNamespace(lock=asyncio.Lock(), step=1)
        weights = PolicyBroadcast(Broadcaster(), Canary(), StageClock(), learners, on_cpus=False)
        engines = SimpleNamespace(leave=lambda engine: events.append(f"{engine} left"))
        sending = asyncio.ensure_future(weights.broadcast(1))
        await asyncio.sleep(1.0)
        await weights.farewell(engines, 1)
        await sending

    run_virtual(main())
    assert events == ["broadcast", "compared", "1 left"]
