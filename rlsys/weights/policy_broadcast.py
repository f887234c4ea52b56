"""One line of the training loop: the engines get a policy version, and the canary checks that they have it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rlsys.errors import WorkerDiedError
from rlsys.metrics.step import Metrics, StageClock
from rlsys.weights.broadcaster import Broadcaster
from rlsys.weights.canary import WeightCanary


class PolicyBroadcast:
    """The broadcast of each step; where it is checked, a canary is compared after it."""

    def __init__(
        self,
        broadcaster: Broadcaster,
        canary: WeightCanary | None,
        clock: StageClock,
        *,
        lock: asyncio.Lock,
        version: Callable[[], int],
        on_cpus: bool,
    ) -> None:
        """Broadcast under the learners' lock.

        Args:
            broadcaster: the way of the weights.
            canary: compares both sides; None where nothing asks for it.
            clock: measures the stage.
            lock: held while the policy changes or is sent.
            version: returns the policy's version now.
            on_cpus: whether the roles share cores.
        """
        self._broadcaster = broadcaster
        self._canary = canary
        self._clock = clock
        self._lock = lock
        self._version = version
        self._on_cpus = on_cpus

    async def broadcast(self, policy_version: int) -> Metrics:
        """Make every engine serve `policy_version`; returns metrics of it, and of comparisons since the last one."""
        with self._clock.stage("broadcast"):
            async with self._lock:
                if self._canary is not None and self._on_cpus:
                    await self._canary.ask_learner(policy_version)
                metrics: Metrics = {**await self._broadcaster.broadcast(policy_version)}
            if self._canary is not None:
                self._canary.begin(policy_version)
                # The results since the previous broadcast; the comparisons that begin now come with the next one.
                metrics |= self._canary.take()
        return metrics

    async def welcome(self, name: str, join: Callable[[], None], is_alive: Callable[[], bool]) -> None:
        """Give the policy as it is now to an engine that has just started, and compare what it computes.

        All engines get it, those that have it too: the group of a broadcast has all engines as its members.

        Args:
            name: the engine's name.
            join: makes it one of the engines that broadcasts reach; called when none is under way.
            is_alive: returns whether it is still there.

        Raises:
            WorkerError: the engine was lost again, or does not compute what the learner does.
        """
        async with self._lock:
            version = self._version()
            join()
            await self._broadcaster.broadcast(version)
            if is_alive() and self._canary is not None:
                await self._canary.check(version, name)
            if not is_alive():
                raise WorkerDiedError(f"{name} was lost while it got the weights", name)

    async def finish(self) -> None:
        """Wait for open comparisons. Raises WeightMismatchError when one fails."""
        if self._canary is not None:
            await self._canary.finish()
