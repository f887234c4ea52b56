"""The models that learn from a step's experience: the policy and, with a value-based estimator, the critic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from rlsys.algorithms.coefficients import adapt_coefficients
from rlsys.config.schema import Config
from rlsys.errors import WeightMismatchError
from rlsys.learner.critic_group import CriticGroup
from rlsys.learner.policy_group import PolicyGroup
from rlsys.metrics.step import Metrics, StageClock
from rlsys.run_folder.replay import ReplayFolders
from rlsys.runtime.background import root_cause
from rlsys.types import Coefficients, Experience, Update


class Learners:
    """The policy and the critic, updated together; it owns the coefficients that adapt from step to step."""

    def __init__(
        self,
        config: Config,
        clock: StageClock,
        policy: PolicyGroup,
        critic: CriticGroup | None,
        coefficients: Coefficients,
        step: int = 0,
        dumps: ReplayFolders | None = None,
    ) -> None:
        """Train from `coefficients` and `step` on; steps that follow a checkpoint are dumped to `dumps`, if given."""
        self._config = config
        self._clock = clock
        self._policy = policy
        self._critic = critic
        self.coefficients = coefficients  # those of the next step
        self.step = step  # the last step whose updates were all made
        self.made = Update({})  # what was measured in them
        self.lock = asyncio.Lock()  # held by whoever changes the policy, and by whoever sends it
        self._dumps = dumps
        self._saved = step  # the last step whose weights are in a checkpoint, or where the run started
        self._open: asyncio.Task[Update] | None = None

    async def update(self, experience: Experience, step: int) -> Update:
        """Train policy and critic on the step's experience; nothing when it is empty.

        At the start of a run, for `train.critic_warmup_steps`, the critic alone is trained. Cancelling the call does
        not end the update, which would leave models of neither this step nor the one before: see `settle`.
        """
        self._open = asyncio.ensure_future(self._train(experience, step))
        return await asyncio.shield(self._open)

    @property
    def is_updating(self) -> bool:
        """Whether an update runs now."""
        return self._open is not None and not self._open.done()

    async def settle(self) -> bool:
        """Wait for an update whose call was cancelled; return whether the models are whole, as after `self.step`."""
        if self._open is None:
            return True
        await asyncio.wait([self._open])
        if self._open.cancelled():
            return False
        error = self._open.exception()
        # Ranks compare themselves with the engines before their first optimizer step, and all raise together.
        return error is None or isinstance(error, WeightMismatchError)

    async def _train(self, experience: Experience, step: int) -> Update:
        async with self.lock:
            self.made = await self._updated(experience, step)
            self.step = step
        return self.made

    async def _updated(self, experience: Experience, step: int) -> Update:
        with self._clock.stage("update"):
            used = experience.coefficients
            metrics: Metrics = {"policy/kl_coef": used.kl, "policy/entropy_coef": used.entropy}
            if not experience.minibatches:
                return Update(metrics)
            # The critic is trained in every step. The policy waits at the start, and the schedule of its learning rate
            # waits with it (`PolicySetup.num_updates`).
            if self._critic is None or step > self._config.train.critic_warmup_steps:
                learned = await self._policy.update(experience, self._dump_to(step))
                metrics |= learned.metrics
                if learned.nonfinite:  # the whole step counts as not applied, so the critic skips it too
                    return Update(metrics, learned.nonfinite)
                self._adapt(metrics, num_trajectories=len(experience.rows))
            if self._critic is None:
                return Update(metrics)
            learned = await self._critic.update(experience)
            return Update(metrics | {**learned.metrics}, learned.nonfinite)

    def _dump_to(self, step: int) -> str | None:
        """Return the folder to dump a step to, if the weights before it are a checkpoint's or the start's."""
        if self._dumps is None:
            return None
        return self._dumps.begin(step) if step == self._saved + 1 else None

    async def check_sees(self, file: str) -> None:
        """Raise RlsysError unless every rank of both models sees a file that the driver has written."""
        await self._policy.check_sees(file)
        if self._critic is not None:
            await self._critic.check_sees(file)

    async def save(self, folder: str, on_begun: Callable[[], None] | None = None) -> None:
        """Write both models' part of a checkpoint; `on_begun` is as for `RankGroup.save`.

        It returns, or raises, when neither model's ranks write any more.
        """
        models = [model for model in (self._policy, self._critic) if model is not None]
        self._saved, num_begun = self.step, 0

        def begun() -> None:
            nonlocal num_begun
            num_begun += 1
            if num_begun == len(models) and on_begun is not None:
                on_begun()

        shared = None if on_begun is None else begun
        results = await asyncio.gather(*(model.save(folder, shared) for model in models), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            raise root_cause(failures)

    async def load(self, folder: str, written_with: Mapping[str, Any]) -> None:
        """Restore what `save` wrote, in a run with the options `written_with`."""
        await self._policy.load(folder, written_with)
        if self._critic is not None:
            await self._critic.load(folder, written_with)

    def _adapt(self, metrics: Metrics, *, num_trajectories: int) -> None:
        self.coefficients = adapt_coefficients(
            self.coefficients,
            self._config.algorithm,
            kl=metrics.get("policy/kl_ref"),
            entropy=metrics.get("policy/entropy"),
            num_trajectories=num_trajectories,
        )
