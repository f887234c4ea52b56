"""The broadcaster and the canary as the configuration asks for them."""

from __future__ import annotations

from typing import Protocol

from rlsys.config.schema import Config
from rlsys.preflight.prepared import Prepared
from rlsys.runtime.calls import Calls
from rlsys.weights.backend import weight_backend
from rlsys.weights.broadcaster import (
    AdapterBroadcaster,
    AdapterEngineSide,
    AdapterSide,
    Broadcaster,
    EngineSide,
    WeightBroadcaster,
    WeightSide,
)
from rlsys.weights.canary import ProbedEngines, ProbedSide, WeightCanary, canary_text
from rlsys.weights.verify import coarser


class PolicySide(WeightSide, AdapterSide, ProbedSide, Protocol):
    """The policy's ranks."""


class RolloutSide(EngineSide, AdapterEngineSide, ProbedEngines, Protocol):
    """The rollout pool."""


def broadcaster_of(config: Config, policy: PolicySide, rollout: RolloutSide, calls: Calls) -> Broadcaster:
    """Return the broadcaster of whole weights, or of adapters where only those are sent."""
    if config.learner.lora.syncs_adapter_only:
        return AdapterBroadcaster(policy, rollout, calls, config.weights)
    return WeightBroadcaster(policy, rollout, calls, config.weights, weight_backend(config))


def needs_canary(config: Config) -> bool:
    """Return whether engines and learner are compared: where it is asked for, and where versions or adapters differ."""
    return config.weights.verify or config.train.max_staleness > 0 or config.learner.lora.rank > 0


def canary_of(prepared: Prepared, policy: PolicySide, rollout: RolloutSide, calls: Calls) -> WeightCanary:
    """Return the canary that compares engines and learner by one fixed text."""
    config = prepared.config
    return WeightCanary(
        calls,
        policy,
        rollout,
        canary_text([prompt.token_ids for prompt in prepared.train_prompts], prepared.max_tokens),
        dtype=coarser(config.learner.dtype, config.engine_dtype) if config.weights.verify else None,
        deadline_s=config.rollout.deadline_s,
    )
