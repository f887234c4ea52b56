"""Predicted memory of each GPU of a run, by role. No GPU has confirmed the figures yet, so they refuse no run.

A rank has a GPU of its own; with `weights.backend=ipc` engine, learner and reference share one. Not predicted are the
memory of the host, and reward models that scoring workers hold on GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.algorithms.requirements import reference_workers, trained_roles
from rlsys.build.role_memory import RoleMemory, RolePredictor
from rlsys.preflight.prepared import Prepared
from rlsys.runtime.findings import Finding, Level
from rlsys.runtime.gpus import Gpu
from rlsys.runtime.node_checks import GB
from rlsys.weights.backend import weight_backend

NAME = "memory of a GPU"
UNCONFIRMED = "predicted; no GPU has confirmed it yet"


@dataclass(frozen=True)
class GpuMemory:
    """What one rank of each role needs on its GPU.

    Attributes:
        roles: on CUDA, a rank each.
        is_shared: whether all are on one GPU.
        engine_share: of a GPU's memory, what an engine takes; the rest of its share is for its cache.
    """

    roles: tuple[RoleMemory, ...]
    is_shared: bool
    engine_share: float

    def needs(self, role: RoleMemory, gpu: Gpu | None) -> int:
        """Return what a rank takes of its GPU: an engine all of its share, where the GPU's size is known."""
        if role.name != "rollout" or gpu is None:
            return role.each
        return max(role.each, int(self.engine_share * gpu.total))


def gpu_memory(prepared: Prepared) -> GpuMemory:
    """Predict the memory of a run's GPUs. Raise ConfigError for a model whose memory cannot be predicted."""
    config = prepared.config
    predictor = RolePredictor(prepared, "cuda")
    is_shared = weight_backend(config) == "ipc"
    roles = [
        predictor.rollout(),
        *(predictor.trained(role, options) for role, options in trained_roles(config).items()),
    ]
    if reference_workers(config):
        roles.append(predictor.reference())
    if is_shared and not config.learner.lora.syncs_adapter_only:
        roles.append(RoleMemory("copy for the engine", 1, {"new weights": predictor.weights()}))
    return GpuMemory(tuple(roles), is_shared, config.rollout.gpu_memory_utilization)


def gpu_finding(memory: GpuMemory, gpu: Gpu | None) -> Finding:
    """Compare what is needed with the GPU that has least free memory; None where this machine has none."""
    engine = next(role for role in memory.roles if role.name == "rollout")
    if gpu is not None and engine.each > (given := memory.engine_share * gpu.total):
        share = f"rollout.gpu_memory_utilization={memory.engine_share:g} gives it {given / GB:.1f}"
        found = f"an engine needs at least {engine.each / GB:.1f} GB, and {share} ({UNCONFIRMED})"
        return Finding(NAME, Level.WARN, found, engine.remedy)
    needs = {role.name: memory.needs(role, gpu) for role in memory.roles}
    largest = max(memory.roles, key=lambda role: (bool(role.remedy), needs[role.name]))
    need = sum(needs.values()) if memory.is_shared else needs[largest.name]
    who = "all roles together need" if memory.is_shared else f"{largest.name} needs"
    found = f"{who} about {need / GB:.1f} GB"
    if gpu is None:
        return Finding(NAME, Level.NOTE, f"{found} ({UNCONFIRMED})")
    found += f" of {gpu.free / GB:.1f} GB that are free"
    if need <= gpu.free:
        return Finding(NAME, Level.OK, f"{found} ({UNCONFIRMED})")
    remedy = "lower rollout.gpu_memory_utilization" if largest is engine else largest.remedy
    return Finding(NAME, Level.WARN, f"{found} ({UNCONFIRMED})", f"the largest is {largest.name}: {remedy}")
