"""Predicted memory of a whole run on one machine's CPUs: every role's processes, at the moment when they hold most.

The learner's share comes from `rlsys.learner.memory`, weights and caches from their sizes. What the processes hold
before there is a model (interpreter, libraries) was measured: `python -m benchmarks.run_memory` compares the sums with
real runs. Pages of files are not counted, as the kernel drops them when memory is short.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from rlsys.algorithms.requirements import reference_workers, trained_roles
from rlsys.config.learner_schema import CriticConfig, LearnerConfig
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.learner.memory import predict_peak
from rlsys.learner.setup import PolicySetup
from rlsys.models.folder import base_dtype
from rlsys.models.meta_memory import MetaMemory, use_kernels_of
from rlsys.models.packing import TokenRow, microbatches, token_batch
from rlsys.models.policy import DTYPES, PolicyModel, empty_policy
from rlsys.preflight.prepared import Prepared
from rlsys.runtime.findings import Finding, Level
from rlsys.runtime.limits import Limits

GB = 1e9
# Bytes of a process before it has a model, by role: interpreter and libraries, with Python 3.11 and the versions in
# requirements.lock. Workers that are forked share some of it for a while; `ray` is raylet, gcs_server, its agents and
# the guardian.
BASE = {
    "driver": 395_000_000,
    "ray": 230_000_000,
    "scoring": 96_000_000,
    "reference": 410_000_000,
    "learner": 430_000_000,
    "critic": 430_000_000,
    "rollout": 690_000_000,
}
# Of the servers that workers are forked from, until all have started.
IMPORTS = 780_000_000
# The C library keeps freed memory (`rlsys.build.environment.keep_freed_memory`), and not all of it fits what is asked
# for next: measured were 5% to 38% of what a learner rank holds at its peak.
GAPS = 0.2
# vLLM's tokens per forward; it runs one of this size when it starts.
BATCHED_TOKENS = 2048
# Copies of a logit per sampled token, in float32: logits, their sorted or exponentiated forms, log-probabilities.
LOGIT_COPIES = 4
# Ray ends workers when 95% of the machine's memory are used.
FULL = 0.9
EXACT = 0.15  # by which share a prediction may be wrong


@dataclass(frozen=True)
class RoleMemory:
    """Bytes of each of a role's processes, by what they are for."""

    name: str
    count: int
    parts: dict[str, int]
    remedy: str = ""

    @property
    def each(self) -> int:
        """Bytes of one process."""
        return sum(self.parts.values())

    @property
    def total(self) -> int:
        """Bytes of all processes."""
        return self.count * self.each


@dataclass(frozen=True)
class RunMemory:
    """The memory of all roles of a run."""

    roles: tuple[RoleMemory, ...]

    @property
    def start(self) -> int:
        """While workers start: nothing but libraries, and the servers that have imported them."""
        return sum(role.count * role.parts.get("base", 0) for role in self.roles) + IMPORTS

    @property
    def training(self) -> int:
        """The sum of all roles: what one of them has freed at the end of its stage, its process keeps."""
        return sum(role.total for role in self.roles)

    @property
    def total(self) -> int:
        """The most at any time: in training, or with a tiny model at the start."""
        return max(self.training, self.start)


def largest_microbatch(prepared: Prepared, max_tokens: int, layout: str) -> list[TokenRow]:
    """Return the fullest microbatch of a step whose prompts and responses all have their greatest lengths."""
    config = prepared.config
    length, response = prepared.max_tokens, config.rollout.max_response_tokens
    mask = np.arange(length) >= max(length - response, 1)
    ids, groups = np.zeros(length, dtype=np.int64), range(config.train.prompts_per_step)
    rows = [TokenRow(ids, mask, group) for group in groups for _ in range(config.train.samples_per_prompt)]
    found = microbatches(rows, max_tokens, layout)
    return [rows[index] for index in max(found, key=len)]


def run_memory(prepared: Prepared) -> RunMemory:
    """Predict the memory of a run on CPUs. Raise ConfigError for a model whose memory cannot be predicted."""
    config = prepared.config
    if config.cluster.num_gpus > 0:
        raise ConfigError("memory of a run with GPUs is not predicted: no GPU has confirmed the figures yet")
    setup = PolicySetup.from_config(config, prepared.model_path, prepared.max_tokens)
    engine = _policy(setup, replace(config.learner, dtype=config.engine_dtype)).hf
    roles = [
        RoleMemory("driver", 1, {"base": BASE["driver"]}),
        RoleMemory("ray", 1, {"base": BASE["ray"]}),
        RoleMemory("scoring", config.scoring.num_workers, {"base": BASE["scoring"]}, "lower scoring.num_workers"),
        _rollout(config, engine),
        *(_trained(role, options, setup, prepared) for role, options in trained_roles(config).items()),
    ]
    if reference_workers(config):
        roles.append(_reference(config, setup, prepared))
    if config.weights.share_memory and not config.learner.lora.syncs_adapter_only:
        remedy = "set weights.share_memory=false"
        roles.append(RoleMemory("shared memory", 1, {"new weights": _bytes(engine)}, remedy))
    return RunMemory(tuple(roles))


def memory_finding(memory: RunMemory, limits: Limits) -> Finding:
    """Compare a prediction with what the machine gives, and name what to change in the largest role."""
    name, need = "memory of the run", f"about {memory.total / GB:.1f} GB are needed"
    largest = max(memory.roles, key=lambda role: (bool(role.remedy), role.total))
    remedy = f"the largest is {largest.name} with {largest.total / GB:.1f} GB: {largest.remedy}"
    if memory.total * (1 - EXACT) > limits.memory:
        return Finding(name, Level.FAIL, f"{need}, more than the {limits.memory / GB:.1f} GB that there are", remedy)
    if memory.total > FULL * limits.free_memory:
        return Finding(name, Level.WARN, f"{need}, and {limits.free_memory / GB:.1f} GB are free", remedy)
    return Finding(name, Level.OK, f"fits: {need} of {limits.free_memory / GB:.1f} GB that are free")


def memory_findings(prepared: Prepared, limits: Limits) -> list[Finding]:
    """Return the verdict on a run's memory on one machine, or why there is none."""
    try:
        return [memory_finding(run_memory(prepared), limits)]
    except ConfigError as error:
        return [Finding("memory of the run", Level.NOTE, str(error))]


def _rollout(config: Config, model: Any) -> RoleMemory:
    rollout, vocabulary = config.rollout, _vocabulary(model)
    ranks = rollout.tensor_parallel_size
    tokens = min(rollout.max_num_seqs, rollout.cap)
    logits = LOGIT_COPIES * 4 * max(tokens, 1) * vocabulary
    parts = {
        "base": BASE["rollout"] * (1 if ranks == 1 else ranks + 1),
        "parameters": _bytes(model),
        "KV cache": int(rollout.kv_cache_gib * 2**30) * ranks,
        "activations": _activations(model, BATCHED_TOKENS),
        "logits": logits,
    }
    remedy = "lower rollout.kv_cache_gib, rollout.num_workers or rollout.max_num_seqs, or set rollout.dtype=bfloat16"
    return RoleMemory("rollout", rollout.num_workers, parts, remedy)


def _trained(role: str, options: LearnerConfig, setup: PolicySetup, prepared: Prepared) -> RoleMemory:
    model = _policy(setup, options)
    rows = largest_microbatch(prepared, options.microbatch_tokens, model.layout)
    found = predict_peak(replace(setup, learner=options), device="cpu", rows=rows)
    is_critic = isinstance(options, CriticConfig)
    parts = {
        "base": BASE[role],
        "parameters": found.parameters,
        "gradients": found.gradients,
        "optimizer": found.optimizer + found.host,
        "activations": found.activations,
        "logits": 0 if is_critic else found.logits,  # a value per token takes their place
        "buffers": max(found.buffers - found.untouched, 0),
    }
    parts["gaps"] = int(GAPS * (sum(parts.values()) - BASE[role]))
    remedy = f"lower {role}.microbatch_tokens, set {role}.gradient_checkpointing=true or {role}.dtype=bfloat16"
    if options.num_workers > 1 and options.zero_stage < 3:
        remedy += f", or raise {role}.zero_stage"
    return RoleMemory(role, options.num_workers, parts, remedy)


def _reference(config: Config, setup: PolicySetup, prepared: Prepared) -> RoleMemory:
    """Trace a reference's forward, which keeps nothing for a backward."""
    policy = _policy(setup, replace(setup.learner, packing=config.reference.packing))
    rows = largest_microbatch(prepared, config.reference.microbatch_tokens, policy.layout)
    use_kernels_of(policy.hf, "cpu")
    memory = MetaMemory("cpu")
    memory.exclude(policy)
    batch = token_batch(rows, policy.layout).to(torch.device("meta"))
    with memory, torch.no_grad():
        policy(batch, setup.temperature)
    # Weights in the file's own dtype are pages of the file.
    is_mapped = base_dtype(setup.model_path, trust_remote_code=setup.trust_remote_code) == DTYPES[setup.learner.dtype]
    parts = {
        "base": BASE["reference"],
        "parameters": 0 if is_mapped else _bytes(policy),
        "activations": memory.peak.total(),
        "gaps": int(GAPS * memory.peak.total()),
    }
    return RoleMemory("reference", reference_workers(config), parts, "lower reference.microbatch_tokens")


def _policy(setup: PolicySetup, options: LearnerConfig) -> PolicyModel:
    """Return the model without adapters, on the meta device."""
    trust, dtype = setup.trust_remote_code, DTYPES[options.dtype]
    return empty_policy(setup.model_path, dtype, packing=options.packing, trust_remote_code=trust)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _vocabulary(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _activations(model: Any, tokens: int) -> int:
    """Return about what a forward without gradients holds: states, and one layer's widest product."""
    config = model.config.get_text_config()
    width = 2 * config.intermediate_size + 4 * config.hidden_size
    return int(tokens * width * next(model.parameters()).element_size())
