"""One line of the training loop: the engines get a policy version, and the canary checks that they have it."""

from __future__ import annotations

from rlsys.metrics.step import Metrics, StageClock
from rlsys.weights.broadcaster import Broadcaster
from rlsys.weights.canary import WeightCanary


class PolicyBroadcast:
    """The broadcast of each step; where it is checked, a canary is compared after it."""

    def __init__(
        self, broadcaster: Broadcaster, canary: WeightCanary | None, clock: StageClock, *, on_cpus: bool
    ) -> None:
        self._broadcaster = broadcaster
        self._canary = canary
        self._clock = clock
        self._on_cpus = on_cpus

    async def broadcast(self, policy_version: int) -> Metrics:
        """Make every engine serve `policy_version`; returns metrics of it, and of comparisons since the last one."""
        with self._clock.stage("broadcast"):
            if self._canary is not None and self._on_cpus:
                await self._canary.ask_learner(policy_version)
            metrics: Metrics = {**await self._broadcaster.broadcast(policy_version)}
            if self._canary is not None:
                self._canary.begin(policy_version)
                # The results since the previous broadcast; the comparisons that begin now come with the next one.
                metrics |= self._canary.take()
        return metrics

    async def finish(self) -> None:
        """Wait for open comparisons. Raises WeightMismatchError when one fails."""
        if self._canary is not None:
            await self._canary.finish()
