"""A prediction of the peak memory of one policy rank, on a GPU or a CPU, from its configuration alone.

It needs neither the device nor the model's weights, starts no process and compiles nothing. Weights, gradients and the
optimizer's state come from formulas for DeepSpeed (`zero_memory`). Activations and logits come from the policy's own
forward and backward, traced on the meta device (`rlsys.models.meta_memory`) with the kernels of the device: 24 layers
take a second or two.

Predicted is training: the largest microbatch while gradients are held, the reduction of gradients, and the optimizer
step. Not predicted are the start, a broadcast of weights (`weights.bucket_mib`), and a reference's forward, which are
smaller; and whatever else lives on a GPU, such as an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rlsys.config.learner_schema import LearnerConfig
from rlsys.errors import ConfigError
from rlsys.learner.setup import PolicySetup
from rlsys.learner.zero_memory import FLOAT32, Sizes, ZeroMemory, bucket_size
from rlsys.models.checkpointing import checkpoint_activations
from rlsys.models.lora import set_dropout
from rlsys.models.meta_memory import BLOCK_BYTES, MetaMemory, use_kernels_of
from rlsys.models.packing import TokenRow, microbatches, token_batch
from rlsys.models.policy import DTYPES, PolicyModel, empty_policy

MIB = 2**20
PARTS = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers")
# What PyTorch does not allocate by itself or cannot use. These are guesses until a GPU has confirmed them.
CONTEXT_BYTES = 600 * MIB  # CUDA's context, cuBLAS's and cuDNN's workspaces, loaded kernels
NCCL_BYTES = 500 * MIB  # the communicator's channels, where there are several ranks
FRAGMENTED_SHARE = 0.05  # of the peak: gaps in the caching allocator


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes of one rank at its peak, in disjoint parts.

    Attributes:
        moment: when the peak is: `microbatch`, `reduction` or `step`.
        parameters: weights in the learner's dtype, and under ZeRO-3 those that are gathered.
        gradients: as they are summed over microbatches.
        optimizer: AdamW's moments, the float32 copy of the weights, and what the step works with.
        activations: what the layers keep for the backward, and what one layer's backward works with.
        logits: what the output layer and the loss allocate, the gradient of its weight included.
        buffers: DeepSpeed's buckets and their copies.
        host: pinned memory of the host, with `offload_optimizer`; no part of the peak.
        untouched: part of the buffers that a small model never fills; a CPU's memory does not hold it.
        unplaced: on CPUs, by how much the heap grows for pieces that its gaps are too small for; no part of the peak.
        allowances: by reason, what cannot be predicted; none on CPUs.
    """

    moment: str
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    host: int
    untouched: int
    unplaced: int
    allowances: dict[str, int]

    @property
    def peak(self) -> int:
        """What PyTorch has allocated at the peak: `torch.cuda.max_memory_allocated` is to be compared with it."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits + self.buffers

    @property
    def total(self) -> int:
        """The peak with all allowances: what must be free on the device."""
        return self.peak + sum(self.allowances.values())


def predict_peak(
    setup: PolicySetup, *, device: str = "cuda", rows: Sequence[TokenRow] | None = None
) -> MemoryPrediction:
    """Predict the peak memory of a policy rank in training.

    An update is taken to have several microbatches. With a single one gradients grow while activations go, and the peak
    is lower by about one of the two.

    Args:
        setup: the rank's part of the configuration.
        device: `cuda` for a GPU with flash kernels (Ampere or later), or `cpu`.
        rows: the largest microbatch; without them a group of the longest trajectories that fit into
            `microbatch_tokens`, half of each the prompt.

    Raises:
        ConfigError: the model cannot be trained as it is asked for, or its memory cannot be predicted.
    """
    policy = _empty_policy(setup, device)
    zero = ZeroMemory(setup.learner, Sizes.of(policy), device)
    try:
        traced = _trace(policy, setup, device, rows or longest_rows(setup, policy.layout))
    except (NotImplementedError, RuntimeError, TypeError) as error:  # code of any origin may ask tensors for numbers
        raise ConfigError(f"the memory of {setup.model_path} cannot be predicted: {error}") from error
    moments = {
        "microbatch": traced | {"parameters": zero.gathered()},
        "reduction": zero.reduction(),
        "step": zero.step(),
    }
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    held = zero.held()
    parts = {name: held.get(name, 0) + moments[moment].get(name, 0) for name in PARTS}
    allowed = allowances(sum(parts.values()), setup.learner.num_workers) if device == "cuda" else {}
    beside = {"host": zero.host(), "untouched": zero.untouched(), "unplaced": zero.unplaced() if device == "cpu" else 0}
    return MemoryPrediction(moment=moment, **parts, **beside, allowances=allowed)


def _empty_policy(setup: PolicySetup, device: str) -> PolicyModel:
    """Return the policy as DeepSpeed holds it, on the meta device; raise ConfigError for what cannot be predicted."""
    learner = setup.learner
    if device not in BLOCK_BYTES:
        raise ConfigError(f"memory can be predicted for {' and '.join(BLOCK_BYTES)}, not for {device}")
    if learner.lora.quantize_base is not None:
        raise ConfigError("the memory of a model in 4 bits cannot be predicted: set learner.lora.quantize_base=null")
    policy = empty_policy(
        setup.model_path,
        DTYPES[learner.dtype],
        packing=learner.packing,
        lora=learner.lora,
        trust_remote_code=setup.trust_remote_code,
    )
    # DeepSpeed converts everything, adapters included, which peft holds in float32.
    return policy.bfloat16() if learner.dtype == "bfloat16" else policy


def longest_rows(setup: PolicySetup, layout: str) -> list[TokenRow]:
    """Return the largest microbatch of a group whose trajectories all have `max_tokens`, half of them the prompt's."""
    length, limit = setup.max_tokens, setup.learner.microbatch_tokens
    row = TokenRow(np.zeros(length, dtype=np.int64), np.arange(length) >= max(length // 2, 1))
    rows = [row] * (2 * limit // length + 1)  # more than fit, with the prompt shared
    return [rows[index] for index in microbatches(rows, limit, layout)[0]]


def allowances(peak: int, num_ranks: int) -> dict[str, int]:
    """Return by reason what a process takes of its GPU besides the `peak` that PyTorch allocates, in bytes."""
    return {
        "CUDA context and workspaces": CONTEXT_BYTES,
        "NCCL": NCCL_BYTES if num_ranks > 1 else 0,
        "fragmentation": int(FRAGMENTED_SHARE * peak),
    }


def _trace(policy: PolicyModel, setup: PolicySetup, device: str, rows: Sequence[TokenRow]) -> dict[str, int]:
    """Run a microbatch's forward and backward on the meta device; return what is alive at the peak, by part."""
    learner, entropy = setup.learner, setup.algorithm.entropy
    use_kernels_of(policy.hf, device)
    if learner.gradient_checkpointing:
        checkpoint_activations(policy.hf)
    if learner.lora.dropout > 0:
        set_dropout(policy, is_active=True)
    has_bonus = entropy.coef > 0 or entropy.target is not None
    batch = token_batch(rows, policy.layout).to(torch.device("meta"))
    memory = MetaMemory(device)
    memory.exclude(policy)
    memory.kind = "activations"
    _mark_logits(policy.hf.get_output_embeddings(), memory)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    reduction = _Reduction(learner, sum(parameter.numel() for parameter in trained), memory)
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(reduction.take)
    with memory:
        logprobs, entropies = policy(batch, setup.temperature, has_bonus)
        # The loss itself has some twenty arrays with a number per token: nothing beside states and logits.
        loss = logprobs.sum() + (entropies.sum() if has_bonus else 0.0)
        if policy.balance_loss is not None:
            loss = loss + policy.balance_loss
        loss.backward()
        reduction.reduce()
    return dict(memory.peak)


def _mark_logits(head: nn.Module, memory: MetaMemory) -> None:
    """Count as logits what is made from the output layer's forward to the end of its backward."""

    def end(_: torch.Tensor) -> None:
        memory.kind = "activations"

    def begin(_: nn.Module, inputs: Any) -> None:
        memory.kind = "logits"
        inputs[0].register_hook(end)  # runs once the gradient of the states is there

    head.register_forward_pre_hook(begin)


class _Reduction:
    """DeepSpeed's hooks during a backward: what they allocate, while activations are still there.

    A gradient is added to what `ZeroMemory` counts as held, and is gone. ZeRO-2 and 3 collect gradients in a bucket and
    reduce it when the next one does not fit; one that is larger than the bucket stays where it is.
    """

    def __init__(self, learner: LearnerConfig, num_trained: int, memory: MetaMemory) -> None:
        self._memory = memory
        self._stage = learner.zero_stage
        self._converts = learner.zero_stage == 1 and learner.dtype == "bfloat16"
        self._dtype = DTYPES[learner.dtype]
        self._size = bucket_size(learner)
        # In float32 ZeRO-2 sums each backward's own gradients in an array first.
        sums_apart = learner.zero_stage == 2 and learner.dtype == "float32" and not learner.offload_optimizer
        self._partition_size = num_trained // learner.num_workers if sums_apart else 0
        self._partition: torch.Tensor | None = None
        self._bucket: torch.Tensor | None = None
        self._filled = 0
        self._large: torch.Tensor | None = None  # kept only so that it stays alive

    def take(self, parameter: torch.Tensor) -> None:
        """Take a parameter's gradient."""
        grad, parameter.grad = parameter.grad, None
        assert grad is not None
        kind, self._memory.kind = self._memory.kind, "buffers"
        if self._converts:
            grad.to(torch.float32)
        if self._stage >= 2:
            self._collect(grad)
        self._memory.kind = kind

    def _collect(self, grad: torch.Tensor) -> None:
        if self._bucket is None and self._stage == 2:  # ZeRO-3 holds its bucket all the time
            self._bucket = self._empty(self._size, self._dtype)
        if self._filled + grad.numel() > self._size:
            self.reduce()
        self._filled += grad.numel()
        self._large = grad if grad.numel() > self._size else None

    def reduce(self) -> None:
        """Reduce what was collected: a flat copy of it, and another one in float32."""
        if self._filled == 0:
            return
        kind, self._memory.kind = self._memory.kind, "buffers"
        copies = [self._empty(self._filled, self._dtype)]
        if self._dtype.itemsize < FLOAT32:
            copies.append(self._empty(self._filled, torch.float32))
        if self._partition is None:
            self._partition = self._empty(self._partition_size, torch.float32)
        self._filled, self._large = 0, None
        self._memory.kind = kind

    def _empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")
