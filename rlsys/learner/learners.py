"""The models that learn from a step's experience: the policy and, with a value-based estimator, the critic."""

from __future__ import annotations

from rlsys.algorithms.coefficients import adapt_coefficients
from rlsys.config.schema import Config
from rlsys.learner.critic_group import CriticGroup
from rlsys.learner.policy_group import PolicyGroup
from rlsys.metrics.step import Metrics, StageClock
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
    ) -> None:
        self._config = config
        self._clock = clock
        self._policy = policy
        self._critic = critic
        self.coefficients = coefficients  # those of the next step

    async def update(self, experience: Experience, step: int) -> Update:
        """Train policy and critic on the step's experience; nothing when it is empty.

        At the start of a run, for `train.critic_warmup_steps`, the critic alone is trained.
        """
        with self._clock.stage("update"):
            used = experience.coefficients
            metrics: Metrics = {"policy/kl_coef": used.kl, "policy/entropy_coef": used.entropy}
            if not experience.minibatches:
                return Update(metrics)
            # The critic is trained in every step. The policy waits at the start, and the schedule of its learning rate
            # waits with it (`PolicySetup.num_updates`).
            if self._critic is None or step > self._config.train.critic_warmup_steps:
                learned = await self._policy.update(experience)
                metrics |= learned.metrics
                if learned.nonfinite:  # the whole step counts as not applied, so the critic skips it too
                    return Update(metrics, learned.nonfinite)
                self._adapt(metrics, num_trajectories=len(experience.rows))
            if self._critic is None:
                return Update(metrics)
            learned = await self._critic.update(experience)
            return Update(metrics | {**learned.metrics}, learned.nonfinite)

    async def save(self, folder: str) -> None:
        """Write both models' part of a checkpoint."""
        await self._policy.save(folder)
        if self._critic is not None:
            await self._critic.save(folder)

    async def load(self, folder: str) -> None:
        """Restore what `save` wrote."""
        await self._policy.load(folder)
        if self._critic is not None:
            await self._critic.load(folder)

    def _adapt(self, metrics: Metrics, *, num_trajectories: int) -> None:
        self.coefficients = adapt_coefficients(
            self.coefficients,
            self._config.algorithm,
            kl=metrics.get("policy/kl_ref"),
            entropy=metrics.get("policy/entropy"),
            num_trajectories=num_trajectories,
        )
