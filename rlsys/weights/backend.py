"""The choice of the channel that weights are sent through."""

from __future__ import annotations

from rlsys.config.schema import Config


def weight_backend(config: Config) -> str:
    """Return the run's backend; `auto` is nccl on GPUs and gloo on CPUs."""
    if config.weights.backend != "auto":
        return config.weights.backend
    return "nccl" if config.cluster.num_gpus > 0 else "gloo"


def engine_backend(backend: str) -> str:
    """Return the name under which vLLM knows rlsys's engine for a backend; it has engines of its own for some."""
    return f"rlsys-{backend}"
