"""One line of the training loop: the engines get a policy version, and the canary checks that they have it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from rlsys.errors import WorkerDiedError
from rlsys.metrics.step import Metrics, StageClock
from rlsys.weights.broadcaster import Broadcaster
from rlsys.weights.canary import WeightCanary


class VersionedPolicy(Protocol):
    """The learners."""

    lock: asyncio.Lock  # held by whoever changes the policy, and by whoever sends it
    step: int  # the policy's version


class ChangingEngines(Protocol):
    """The pool of engines."""

    def name(self, engine: int) -> str:
        """Return an engine's name."""

    def join(self, engine: int) -> None:
        """Make an engine that has just started one of those that broadcasts reach."""

    def leave(self, engine: int) -> None:
        """Make an engine one of those that broadcasts do not reach any more."""

    def is_alive(self, engine: int) -> bool:
        """Return whether an engine has not been lost, as far as is known."""


class PolicyBroadcast:
    """The broadcast of each step; where it is checked, a canary is compared after it."""

    def __init__(
        self,
        broadcaster: Broadcaster,
        canary: WeightCanary | None,
        clock: StageClock,
        learners: VersionedPolicy,
        *,
        on_cpus: bool,
    ) -> None:
        """Broadcast under the learners' lock.

        Args:
            broadcaster: the way of the weights.
            canary: compares both sides; None where nothing asks for it.
            clock: measures the stage.
            learners: hold the policy.
            on_cpus: whether the roles share cores.
        """
        self._broadcaster = broadcaster
        self._canary = canary
        self._clock = clock
        self._learners = learners
        self._on_cpus = on_cpus

    async def broadcast(self, policy_version: int) -> Metrics:
        """Make every engine serve `policy_version`; returns metrics of it, and of comparisons since the last one."""
        with self._clock.stage("broadcast"):
            async with self._learners.lock:
                if self._canary is not None and self._on_cpus:
                    await self._canary.ask_learner(policy_version)
                metrics: Metrics = {**await self._broadcaster.broadcast(policy_version)}
            if self._canary is not None:
                self._canary.begin(policy_version)
                # The results since the previous broadcast; the comparisons that begin now come with the next one.
                metrics |= self._canary.take()
        return metrics

    async def welcome(self, engines: ChangingEngines, engine: int) -> None:
        """Give the policy as it is now to an engine that has just started, and compare what it computes.

        All engines get it, those that have it too: the group of a broadcast has all engines as its members.

        Raises:
            WorkerError: the engine was lost again, or does not compute what the learner does.
        """
        name = engines.name(engine)
        async with self._learners.lock:
            version = self._learners.step
            engines.join(engine)
            await self._broadcaster.broadcast(version)
            if engines.is_alive(engine) and self._canary is not None:
                await self._canary.check(version, name)
            if not engines.is_alive(engine):
                raise WorkerDiedError(f"{name} was lost while it got the weights", name)

    async def farewell(self, engines: ChangingEngines, engine: int) -> None:
        """Let an engine leave between two broadcasts, once it has answered every open comparison."""
        async with self._learners.lock:
            await self.finish()
            engines.leave(engine)

    async def finish(self) -> None:
        """Wait for open comparisons. Raises WeightMismatchError when one fails."""
        if self._canary is not None:
            await self._canary.finish()
