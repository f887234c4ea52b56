"""A rollout worker's part of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlsys.config.schema import Config, RolloutConfig
from rlsys.preflight.prepared import Prepared
from rlsys.rollout.served_adapters import AdapterSlots
from rlsys.weights.backend import weight_backend

# Policy version of weights read from `model.path`, before any broadcast.
LOADED_VERSION = -1


@dataclass(frozen=True)
class EngineSetup:
    """One rollout worker's part of the configuration."""

    rollout: RolloutConfig
    model_path: str
    max_tokens: int  # length of the longest trajectory
    backend: str  # nccl | ipc | gloo: how weights arrive
    seed: int
    stop_token_ids: tuple[int, ...]  # end a response
    trust_remote_code: bool = False
    slots: AdapterSlots | None = None  # for adapters, where the policy has them

    @classmethod
    def from_prepared(cls, prepared: Prepared) -> EngineSetup:
        """Return the setup of a run."""
        config = prepared.config
        return cls(
            rollout=replace(config.rollout, dtype=config.engine_dtype),
            model_path=prepared.model_path,
            max_tokens=prepared.max_tokens,
            backend=weight_backend(config),
            seed=config.seed,
            stop_token_ids=tuple(token.id for token in prepared.stop_tokens),
            trust_remote_code=config.model.trust_remote_code,
            slots=adapter_slots(config, prepared.adapted_layers),
        )


def adapter_slots(config: Config, layers: tuple[str, ...]) -> AdapterSlots | None:
    """Return what engines keep ready for adapters of these layers; None where they serve none."""
    lora = config.learner.lora
    if not lora.syncs_adapter_only:
        return None
    quantization = None if lora.quantize_base is None else "bitsandbytes"
    # One version per step that sampling may run ahead, and the newest.
    return AdapterSlots(lora.rank, 1 + config.train.max_staleness, layers, config.model.adapter, quantization)
