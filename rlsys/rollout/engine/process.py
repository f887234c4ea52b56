"""vLLM's worker processes: what rlsys adds to them, and repairs of the CPU backend.

vLLM imports this module in each process that holds a model (`worker_extension_cls`), before it builds the model.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.platforms import current_platform
from vllm.v1.sample import sampler

from rlsys.rollout.engine import norms
from rlsys.rollout.engine.receiver import WeightReceiver


class EngineProcess(WeightReceiver):
    """The methods that vLLM's worker class gets from rlsys."""


def repair_rotary_embedding() -> None:
    """Let CPU engines rotate queries and keys that come head by head with PyTorch's operations.

    The CPU kernel takes the step from one head to the next for the step from one token to the next: of [T, heads, size]
    it rotates the wrong numbers. Multi-head latent attention (DeepSeek V2, V3) calls it like that. Others pass
    [T, heads * size], and keep the kernel.
    """
    kernel = RotaryEmbedding.forward_cpu

    def forward_cpu(
        self: Any, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if query.dim() == 3:
            rotated: tuple[torch.Tensor, torch.Tensor | None] = self.forward_native(positions, query, key)
            return rotated
        return kernel(self, positions, query, key)

    RotaryEmbedding.forward_cpu = forward_cpu


def leave_output_layer_alone() -> None:
    """Let CPU engines add nothing to logits for adapters that do not change the output layer.

    vLLM computes the product of zeros, by an index for each sampled token. The log-probabilities of a prompt have other
    rows: beside running requests that ends the engine.
    """
    whole = PunicaWrapperCPU.add_lora_logits

    def add_lora_logits(
        self: Any, y: torch.Tensor, x: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, *args: Any, **rest: Any
    ) -> torch.Tensor | None:
        if lora_a.any():
            changed: torch.Tensor | None = whole(self, y, x, lora_a, lora_b, *args, **rest)
            return changed
        return None

    PunicaWrapperCPU.add_lora_logits = add_lora_logits


def leave_experts_alone() -> None:
    """Let CPU engines that serve adapters compute experts as without them.

    vLLM would take a Triton kernel, which CPUs do not have: the first request ended the engine. An adapter of experts,
    which rlsys does not train but may be asked to evaluate, is still refused, by vLLM when the engine starts.
    """
    chosen = unquantized_fused_moe_method.select_unquantized_moe_backend

    def select(moe_config: Any) -> Any:
        plain = copy.copy(moe_config)
        plain.is_lora_enabled = False
        return chosen(plain)

    unquantized_fused_moe_method.select_unquantized_moe_backend = select


def count_no_ranks() -> None:
    """Let CPU engines report rank 0 for every token, instead of how many words are likelier; nobody reads it.

    vLLM counts them by a function that PyTorch compiles at the first token: 2 s of every start, 5 s of the first.
    """

    def no_ranks(logprobs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(logprobs), dtype=torch.int64)

    sampler.batched_count_greater_than = no_ranks


repair_rotary_embedding()
leave_output_layer_alone()
if current_platform.is_cpu():
    leave_experts_alone()
    count_no_ranks()
    norms.register()
