"""Predicted memory of one process of each role that holds a model, at the moment when it holds most.

The learner's share comes from `rlsys.learner.memory`, weights and caches from their sizes. For CPUs it is the memory of
the process, libraries included; for GPUs that of the rank's GPU alone, by figures that no GPU has confirmed yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from rlsys.algorithms.requirements import reference_workers
from rlsys.build.environment import worker_imports
from rlsys.config.learner_schema import CriticConfig, LearnerConfig
from rlsys.learner.memory import MemoryPrediction, allowances, predict_peak
from rlsys.learner.setup import PolicySetup
from rlsys.models.folder import base_dtype
from rlsys.models.meta_memory import MetaMemory, use_kernels_of
from rlsys.models.packing import TokenRow, microbatches, token_batch
from rlsys.models.policy import DTYPES, PolicyModel, empty_policy
from rlsys.preflight.prepared import Prepared

# Bytes of a process before it has a model, by role: interpreter and libraries, with Python 3.11 and the versions in
# requirements.lock. `ray` is raylet, gcs_server, its agents and the guardian, `imports` the fork servers.
BASE = {
    "driver": 395_000_000,
    "ray": 230_000_000,
    "scoring": 96_000_000,
    "episodes": 400_000_000,
    "imports": 798_000_000,
    "reference": 115_000_000,
    "learner": 230_000_000,
    "critic": 230_000_000,
    "rollout": 228_000_000,
}
# An environment's process, forked from one that has imported `guess_number`: 22 MB of anonymous pages, two thirds of
# which it shares with the others. What an environment of yours holds comes to it.
SLOT = 22_000_000
# What comes to it in a worker that has imported its libraries. One that is forked shares that with its server.
IMPORTED = {"reference": 295_000_000, "learner": 295_000_000, "critic": 295_000_000, "rollout": 278_000_000}
# The C library keeps freed memory (`rlsys.build.environment.keep_freed_memory`), and not all of it fits what is asked
# for next: measured were 5% to 38% of what a learner rank holds at its peak. Of a reference, with few and large arrays,
# it was 120 to 450 MB where 154 MB were in use, by chance.
GAPS = {"learner": 0.2, "critic": 0.2, "reference": 1.6}
# Tokens of one of vLLM's forwards: it runs one of this size when it starts. On large GPUs it chooses more.
BATCHED_TOKENS = 2048
# Copies of a logit per sampled token, in float32: logits, their sorted or exponentiated forms, log-probabilities.
LOGIT_COPIES = 4


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


class RolePredictor:
    """Predicts the memory of a prepared run's roles on one kind of device, `cpu` or `cuda`."""

    def __init__(self, prepared: Prepared, device: str) -> None:
        self._prepared = prepared
        self._config = prepared.config
        self._device = device
        self._setup = PolicySetup.from_config(self._config, prepared.model_path, prepared.max_tokens)
        self._engine = self._policy(replace(self._config.learner, dtype=self._config.engine_dtype)).hf

    def weights(self) -> int:
        """Return the bytes of the policy's weights as they travel to the engines."""
        return _bytes(self._engine)

    def rollout(self) -> RoleMemory:
        """Predict an engine; on GPUs one rank of it, and of its cache only what the longest trajectory fills."""
        rollout, model, ranks = self._config.rollout, self._engine, self._config.rollout.tensor_parallel_size
        tokens = max(min(rollout.max_num_seqs, rollout.cap), 1)
        parts = {
            "parameters": _bytes(model),
            "activations": _activations(model, BATCHED_TOKENS),
            "logits": LOGIT_COPIES * 4 * tokens * int(model.get_output_embeddings().weight.shape[0]),
        }
        if self._device == "cuda":
            parts["parameters"] //= ranks
            parts["KV cache"] = _cached(model, self._prepared.max_tokens) // ranks
            parts["allowances"] = _allowed(parts, ranks)
            remedy = "raise rollout.gpu_memory_utilization or rollout.tensor_parallel_size"
            return RoleMemory("rollout", rollout.num_workers * ranks, parts, remedy)
        # With tensor parallelism every rank is one more process, which vLLM starts and which imports by itself.
        parts["base"] = self._base("rollout") + (ranks if ranks > 1 else 0) * (BASE["rollout"] + IMPORTED["rollout"])
        parts["KV cache"] = int(rollout.kv_cache_gib * 2**30) * ranks
        # Weights that arrive are packed anew beside the old ones, and the heap keeps the room. With this the engines of
        # benchmarks.run_memory are predicted within 36 MB.
        parts["reload"] = parts["parameters"]
        remedy = "lower rollout.kv_cache_gib, rollout.num_workers or rollout.max_num_seqs"
        if self._config.engine_dtype == "float32":
            remedy += ", or set rollout.dtype=bfloat16"
        return RoleMemory("rollout", rollout.num_workers, parts, remedy)

    def trained(self, role: str, options: LearnerConfig) -> RoleMemory:
        """Predict a rank of the learner or the critic."""
        rows = largest_microbatch(self._prepared, options.microbatch_tokens, self._policy(options).layout)
        found = predict_peak(replace(self._setup, learner=options), device=self._device, rows=rows)
        parts = {
            "parameters": found.parameters,
            "gradients": found.gradients,
            "optimizer": found.optimizer,
            "activations": found.activations,
            # A value per token takes the place of a critic's logits.
            "logits": 0 if isinstance(options, CriticConfig) else found.logits,
            "buffers": found.buffers,
        }
        if self._device == "cuda":
            parts["allowances"] = sum(found.allowances.values())
        else:
            parts["optimizer"] += found.host
            parts["buffers"] = max(found.buffers - found.untouched, 0)
            parts["gaps"] = int(GAPS[role] * sum(parts.values())) + found.unplaced
            parts["base"] = self._base(role)
            parts["checkpoint"] = self._checkpoint_copy(role, options, found)
        remedy = f"lower {role}.microbatch_tokens, set {role}.gradient_checkpointing=true"
        if options.dtype == "float32":
            remedy += f" or {role}.dtype=bfloat16"
        if options.num_workers > 1 and options.zero_stage < 3:
            remedy += f", or raise {role}.zero_stage"
        if parts.get("checkpoint"):
            remedy += ", or write a last checkpoint only (checkpoint.every=0 checkpoint.every_s=0)"
        return RoleMemory(role, options.num_workers, parts, remedy)

    def reference(self) -> RoleMemory:
        """Trace a reference worker's forward, which keeps nothing for a backward."""
        config, setup = self._config, self._setup
        policy = self._policy(replace(setup.learner, packing=config.reference.packing))
        rows = largest_microbatch(self._prepared, config.reference.microbatch_tokens, policy.layout)
        use_kernels_of(policy.hf, self._device)
        memory = MetaMemory(self._device)
        memory.exclude(policy)
        batch = token_batch(rows, policy.layout).to(torch.device("meta"))
        with memory, torch.no_grad():
            policy(batch, setup.temperature)
        parts = {"parameters": _bytes(policy), "activations": memory.peak.total()}
        if self._device == "cuda":
            parts["allowances"] = _allowed(parts, 1)
        else:
            trust, dtype = setup.trust_remote_code, DTYPES[setup.learner.dtype]
            if base_dtype(setup.model_path, trust_remote_code=trust) == dtype:
                parts["parameters"] = 0  # pages of the file
            parts["gaps"] = int(GAPS["reference"] * parts["activations"])
            parts["base"] = self._base("reference")
        return RoleMemory("reference", reference_workers(config), parts, "lower reference.microbatch_tokens")

    def _base(self, role: str) -> int:
        return BASE[role] + (0 if worker_imports(self._config) else IMPORTED[role])

    def _checkpoint_copy(self, role: str, options: LearnerConfig, found: MemoryPrediction) -> int:
        """Return the bytes of what a rank writes while training goes on; that of rank 0, which writes most.

        It has pages of its own, so it comes on top of an update, and leaves no gaps.
        """
        saved = self._config.checkpoint
        if not (saved.every or saved.every_s or saved.keep_best):
            return 0  # training waits for the last one, which is not copied
        size = found.optimizer + found.host + (0 if options.lora.rank else found.parameters)
        if role == "learner" and not options.lora.syncs_adapter_only:
            trust = self._setup.trust_remote_code
            dtype = base_dtype(self._setup.model_path, trust_remote_code=trust)
            dtype = dtype if saved.dtype is None else DTYPES[saved.dtype]
            size += sum(parameter.numel() for parameter in self._engine.parameters()) * dtype.itemsize
        return size

    def _policy(self, options: LearnerConfig) -> PolicyModel:
        """Return the model without adapters, on the meta device."""
        setup, dtype = self._setup, DTYPES[options.dtype]
        trust = setup.trust_remote_code
        return empty_policy(setup.model_path, dtype, packing=options.packing, trust_remote_code=trust)


def largest_microbatch(prepared: Prepared, max_tokens: int, layout: str) -> list[TokenRow]:
    """Return the fullest microbatch of a step whose prompts and responses all have their greatest lengths."""
    config = prepared.config
    length, response = prepared.max_tokens, config.rollout.max_response_tokens
    mask = np.arange(length) >= max(length - response, 1)
    ids, groups = np.zeros(length, dtype=np.int64), range(config.train.prompts_per_step)
    rows = [TokenRow(ids, mask, group) for group in groups for _ in range(config.train.samples_per_prompt)]
    found = microbatches(rows, max_tokens, layout)
    return [rows[index] for index in max(found, key=len)]


def _allowed(parts: dict[str, int], num_ranks: int) -> int:
    return sum(allowances(sum(parts.values()), num_ranks).values())


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _activations(model: Any, tokens: int) -> int:
    """Return about what a forward without gradients holds: states, and one layer's widest product."""
    config = model.config.get_text_config()
    width = 2 * getattr(config, "intermediate_size", 4 * config.hidden_size) + 4 * config.hidden_size
    return int(tokens * width * next(model.parameters()).element_size())


def _cached(model: Any, tokens: int) -> int:
    """Return what an engine keeps of one sequence: a key and a value per token, layer and head that has its own."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    numbers = 2 * tokens * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * size
    return int(numbers * next(model.parameters()).element_size())
