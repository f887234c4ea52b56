"""The ranks' part of a run's configuration, in the form that they are started with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlsys.algorithms.requirements import needs_critic
from rlsys.config.algorithm_schema import AlgorithmConfig
from rlsys.config.learner_schema import CriticConfig, LearnerConfig
from rlsys.config.schema import Config, WeightsConfig


@dataclass(frozen=True)
class PolicySetup:
    """The part of the configuration that a policy rank needs."""

    learner: LearnerConfig
    algorithm: AlgorithmConfig
    weights: WeightsConfig
    model_path: str
    max_tokens: int  # length of the longest trajectory, the engines' context
    trust_remote_code: bool
    chat_template: str | None
    adapter: str | None  # folder of an adapter to start from
    saved_dtype: str | None  # None: the base's
    engine_dtype: str
    temperature: float
    num_updates: int  # in the whole run: the length of the learning rate's schedule
    passes: int  # passes over a step's minibatches
    old_logprobs: str
    kv_is_kept: bool  # whether responses that run across a weight update keep their KV cache
    seed: int

    @classmethod
    def from_config(cls, config: Config, model_path: str, max_tokens: int) -> PolicySetup:
        """Build it from the run's configuration, the resolved model folder or hub id, and the longest trajectory."""
        # While the critic warms up alone the policy makes no updates, so its schedule is shorter.
        critic_alone = config.train.critic_warmup_steps if needs_critic(config) else 0
        return cls(
            learner=replace(config.learner, deadline_s=config.learner.deadline_s * config.deadline_factor),
            algorithm=config.algorithm,
            weights=config.weights,
            model_path=model_path,
            max_tokens=max_tokens,
            trust_remote_code=config.model.trust_remote_code,
            chat_template=config.model.chat_template,
            adapter=config.model.adapter,
            saved_dtype=config.checkpoint.dtype,
            engine_dtype=config.engine_dtype,
            temperature=config.rollout.temperature,
            num_updates=num_updates(config, config.train.num_steps - critic_alone),
            passes=config.train.updates_per_step,
            old_logprobs=config.train.old_logprobs,
            kv_is_kept=config.rollout.inflight_kv == "keep",
            seed=config.seed,
        )


@dataclass(frozen=True)
class CriticSetup:
    """The part of the configuration that a critic rank needs."""

    critic: CriticConfig
    algorithm: AlgorithmConfig
    model_path: str
    max_tokens: int  # length of the longest trajectory, the engines' context
    trust_remote_code: bool
    num_updates: int  # in the whole run: the length of the learning rate's schedule
    passes: int  # passes over a step's minibatches
    seed: int

    @classmethod
    def from_config(cls, config: Config, model_path: str, max_tokens: int) -> CriticSetup:
        """Build it from the run's configuration, the resolved model folder or hub id, and the longest trajectory."""
        return cls(
            critic=replace(config.critic, deadline_s=config.critic.deadline_s * config.deadline_factor),
            algorithm=config.algorithm,
            model_path=model_path,
            max_tokens=max_tokens,
            trust_remote_code=config.model.trust_remote_code,
            num_updates=num_updates(config, config.train.num_steps),
            passes=config.train.updates_per_step,
            seed=config.seed,
        )


def num_updates(config: Config, num_steps: int) -> int:
    """Return the number of optimizer updates in `num_steps` steps."""
    return num_steps * config.train.updates_per_step * config.train.minibatches_per_step
