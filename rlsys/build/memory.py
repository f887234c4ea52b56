"""Predicted memory of a whole run on one machine's CPUs: every role's processes, at the moment when they hold most.

`python -m benchmarks.run_memory` compares the sums with real runs. Pages of files are not counted, as the kernel drops
them when memory is short.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.algorithms.requirements import reference_workers, trained_roles
from rlsys.build.environment import worker_imports
from rlsys.build.gpu_memory import gpu_finding, gpu_memory
from rlsys.build.role_memory import BASE, SLOT, RoleMemory, RolePredictor
from rlsys.errors import ConfigError
from rlsys.preflight.prepared import Prepared
from rlsys.runtime.findings import Finding, Level
from rlsys.runtime.gpus import fullest_gpu
from rlsys.runtime.limits import Limits
from rlsys.runtime.node_checks import GB

NAME = "memory of the run"
# Ray ends workers when 95% of the machine's memory are used.
FULL = 0.9
EXACT = 0.15  # by which share a prediction may be wrong


@dataclass(frozen=True)
class RunMemory:
    """The memory of all roles of a run."""

    roles: tuple[RoleMemory, ...]

    @property
    def total(self) -> int:
        """The sum of all roles: what one of them has freed at the end of its stage, its process keeps."""
        return sum(role.total for role in self.roles)


def run_memory(prepared: Prepared) -> RunMemory:
    """Predict the memory of a run on CPUs. Raise ConfigError for a model whose memory cannot be predicted."""
    config = prepared.config
    predictor = RolePredictor(prepared, "cpu")
    roles = [
        RoleMemory("driver", 1, {"base": BASE["driver"]}),
        RoleMemory("ray", 1, {"base": BASE["ray"]}),
        RoleMemory("scoring", config.scoring.num_workers, {"base": BASE["scoring"]}, "lower scoring.num_workers"),
        predictor.rollout(),
        *(predictor.trained(role, options) for role, options in trained_roles(config).items()),
    ]
    if config.has_episodes:
        episodes, together = config.episodes, config.train.prompts_per_step * config.train.samples_per_prompt
        slots = min(episodes.num_slots, -(-together * (1 + config.train.max_staleness) // episodes.num_workers))
        parts = {"base": BASE["episodes"], "environments": slots * SLOT}
        roles.append(RoleMemory("episodes", episodes.num_workers, parts, "lower episodes.num_slots"))
    if worker_imports(config):
        roles.append(RoleMemory("imports", 1, {"base": BASE["imports"]}))
    if reference_workers(config):
        roles.append(predictor.reference())
    if config.weights.share_memory and not config.learner.lora.syncs_adapter_only:
        remedy = "set weights.share_memory=false"
        roles.append(RoleMemory("shared memory", 1, {"new weights": predictor.weights()}, remedy))
    return RunMemory(tuple(roles))


def memory_finding(memory: RunMemory, limits: Limits) -> Finding:
    """Compare a prediction with what the machine gives, and name what to change in the largest role."""
    need = f"about {memory.total / GB:.1f} GB are needed"
    largest = max(memory.roles, key=lambda role: (bool(role.remedy), role.total))
    remedy = f"the largest is {largest.name} with {largest.total / GB:.1f} GB: {largest.remedy}"
    if memory.total * (1 - EXACT) > limits.memory:
        return Finding(NAME, Level.FAIL, f"{need}, more than the {limits.memory / GB:.1f} GB that there are", remedy)
    if memory.total > FULL * limits.free_memory:
        return Finding(NAME, Level.WARN, f"{need}, and {limits.free_memory / GB:.1f} GB are free", remedy)
    return Finding(NAME, Level.OK, f"fits: {need} of {limits.free_memory / GB:.1f} GB that are free")


def memory_findings(prepared: Prepared, limits: Limits) -> list[Finding]:
    """Return the verdict on the memory of a run on this machine or its GPUs, or why there is none."""
    try:
        if prepared.config.cluster.num_gpus > 0:
            return [gpu_finding(gpu_memory(prepared), fullest_gpu())]
        return [memory_finding(run_memory(prepared), limits)]
    except ConfigError as error:
        return [Finding(NAME, Level.NOTE, str(error))]
