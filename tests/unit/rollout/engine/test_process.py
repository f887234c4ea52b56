"""The repairs of vLLM's worker processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from rlsys.rollout.engine.process import leave_experts_alone

HEADS, SIZE = 2, 64


@pytest.mark.parametrize("is_flat", [True, False], ids=["[T, heads * size]", "[T, heads, size]"])
def test_cpu_engines_rotate_each_token_by_its_position(is_flat: bool) -> None:
    with set_current_vllm_config(VllmConfig()):
        rotary = RotaryEmbedding(SIZE, SIZE, 16, 10000.0, is_neox_style=False, dtype=torch.float32)
    whole = torch.randn(5, HEADS, 32 + SIZE)
    query = whole[..., 32:]  # as MLA passes it: the rotated part of each head, between others
    key = torch.randn(5, 512 + SIZE)[:, 512:].unsqueeze(1)
    if is_flat:
        query, key = query.reshape(5, -1), key.reshape(5, -1)
    positions = torch.tensor([0, 1, 2, 3, 9])
    expected = [_rotated(tensor.reshape(5, -1, SIZE), positions) for tensor in (query, key)]
    found = rotary.forward_cpu(positions, query.clone() if is_flat else query, key.clone() if is_flat else key)
    for ours, right in zip(found, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours.reshape(5, -1, SIZE), right)


@pytest.mark.parametrize("size", [0.0, 1.0], ids=["of inner layers", "of the output layer"])
def test_prompts_beside_running_requests_get_the_logits_of_their_adapter(size: float) -> None:
    wrapper = PunicaWrapperCPU(64, 8, "cpu")
    wrapper._sampler_indices[:2] = 0  # two requests sample a token in this step, with the first adapter
    wrapper.indices_len = [2, 2, 2, 2]
    logits = torch.randn(5, 16)
    lora_a, lora_b = torch.randn(1, 1, 4, 8) * size, torch.randn(1, 1, 16, 4)
    before, states = logits.clone(), torch.randn(5, 8)
    if size:  # rlsys refuses such adapters; an engine must not leave them out
        with pytest.raises(RuntimeError):
            wrapper.add_lora_logits(logits, states, lora_a, lora_b, 1.0)
        logits, states = before[:2].clone(), states[:2]
        expected = before[:2] + states @ lora_a[0, 0].T @ lora_b[0, 0].T
    else:
        expected = before
    wrapper.add_lora_logits(logits, states, lora_a, lora_b, 1.0)
    torch.testing.assert_close(logits, expected)


def test_experts_are_computed_as_without_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/families runs mixtures with adapters through real engines."""
    given = SimpleNamespace(is_lora_enabled=True)
    monkeypatch.setattr(unquantized_fused_moe_method, "select_unquantized_moe_backend", lambda config: config)
    leave_experts_alone()
    assert not unquantized_fused_moe_method.select_unquantized_moe_backend(given).is_lora_enabled
    assert given.is_lora_enabled


def _rotated(vectors: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs of [T, heads, size] by position * 10000^(-2i / size) (arXiv:2104.09864)."""
    angles = positions[:, None].double() * 10000.0 ** (-torch.arange(0, SIZE, 2).double() / SIZE)
    pairs = torch.view_as_complex(vectors.double().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.view_as_real(turned).flatten(-2).float()
