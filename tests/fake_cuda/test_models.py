"""Policies and critics on an imaginary GPU, forward and backward: kernels, devices, dtypes and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlsys.config.learner_schema import LoraConfig
from rlsys.models.checkpointing import checkpoint_activations
from rlsys.models.kernels import head
from rlsys.models.lora import set_dropout, without_adapters
from rlsys.models.packing import LAYOUTS, TokenBatch, token_batch
from rlsys.models.policy import PolicyModel, load_policy
from rlsys.models.value import load_critic
from tests.fake_cuda.gpu import FakeGpu
from tests.unit.models.test_policy import rows
from tests.unit.models.test_trial import copy_of

CUDA = torch.device("cuda", 0)
FLASH = torch.ops.aten._flash_attention_forward.default
FLASH_BACKWARD = torch.ops.aten._flash_attention_backward.default
FLEX, FLEX_BACKWARD = torch.ops.higher_order.flex_attention, torch.ops.higher_order.flex_attention_backward
DTYPES = (torch.bfloat16, torch.float32)


def policy_on_gpu(folder: Path, dtype: torch.dtype, **options: Any) -> PolicyModel:
    return load_policy(str(folder), dtype, max_tokens=64, **options).to("cuda")


def batch_on_gpu(layout: str) -> TokenBatch:
    return token_batch(rows(), layout).to(torch.device("cuda"))


def check_training(model: torch.nn.Module, found: torch.Tensor, batch: TokenBatch) -> None:
    """Results are float32 on the GPU, one per token, and every trained parameter gets a gradient of its own kind."""
    assert (found.device, found.dtype, found.shape) == (CUDA, torch.float32, batch.loss_mask.shape)
    found.sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in trained.items():
        assert parameter.device == CUDA, name
        assert parameter.grad is not None, name
        assert (parameter.grad.dtype, parameter.grad.shape) == (parameter.dtype, parameter.shape), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_policy_trains(tiny: Path, dtype: torch.dtype, layout: str, checkpointing: bool) -> None:
    """Packed rows go through the flash kernels in half precision, and through flex attention in float32."""
    with FakeGpu() as gpu:
        policy = policy_on_gpu(tiny, dtype, packing=layout)
        if checkpointing:
            checkpoint_activations(policy.hf)
        batch = batch_on_gpu(layout)
        logprobs, entropy = policy(batch, 0.7)
        check_training(policy, logprobs, batch)
    assert (entropy.device, entropy.shape) == (CUDA, logprobs.shape)
    kernels = {FLASH, FLASH_BACKWARD, FLEX, FLEX_BACKWARD} & gpu.ran
    packed = {FLASH, FLASH_BACKWARD} if dtype is torch.bfloat16 else {FLEX, FLEX_BACKWARD}
    assert kernels == (set() if layout == "padded" else packed)


def test_as_many_heads_of_keys_as_of_queries(tiny_mha: Path) -> None:
    with FakeGpu() as gpu:
        policy = policy_on_gpu(tiny_mha, torch.bfloat16)
        batch = batch_on_gpu(policy.layout)
        check_training(policy, policy(batch, 1.0)[0], batch)
    assert FLASH in gpu.ran


def test_an_older_gpu_has_no_flash_kernels(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    with FakeGpu() as gpu:
        policy = policy_on_gpu(tiny, torch.bfloat16)
        batch = batch_on_gpu(policy.layout)
        check_training(policy, policy(batch, 1.0)[0], batch)
    assert {FLASH, FLEX} & gpu.ran == {FLEX}


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vocabulary_in_chunks(
    tiny: Path, dtype: torch.dtype, entropy_gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "DENSE_ELEMENTS", 0)
    monkeypatch.setattr(head, "MIN_CHUNK", 32)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 1)
    with FakeGpu():
        policy = policy_on_gpu(tiny, dtype)
        batch = batch_on_gpu(policy.layout)
        logprobs, entropy = policy(batch, 0.7, entropy_gradient)
        assert entropy.requires_grad is entropy_gradient
        check_training(policy, logprobs + entropy, batch)


@pytest.mark.parametrize("more", [{"dropout": 0.1}, {"use_dora": True}], ids=["dropout", "dora"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adapters_train(tiny: Path, dtype: torch.dtype, more: dict[str, Any]) -> None:
    with FakeGpu():
        policy = policy_on_gpu(tiny, dtype, lora=LoraConfig(rank=4, **more))
        batch = batch_on_gpu(policy.layout)
        with without_adapters(policy), torch.no_grad():
            assert policy(batch, 1.0)[0].device == CUDA
        set_dropout(policy, is_active=True)
        check_training(policy, policy(batch, 1.0)[0], batch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_critic_trains(tiny: Path, dtype: torch.dtype) -> None:
    with FakeGpu():
        critic = load_critic(str(tiny), dtype, max_tokens=64).to("cuda")
        batch = batch_on_gpu(critic.layout)
        check_training(critic, critic(batch), batch)


def test_experts_train_with_the_loss_that_balances_them() -> None:
    policy = PolicyModel(copy_of("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.3).bfloat16())
    with FakeGpu():
        policy.to("cuda")
        batch = batch_on_gpu(policy.layout)
        logprobs, _ = policy(batch, 1.0)
        assert policy.balance_loss is not None
        check_training(policy, logprobs + policy.balance_loss, batch)


def test_a_tensor_on_the_wrong_device_is_an_error(tiny: Path) -> None:
    """The imaginary GPU refuses what a real one refuses: otherwise the tests above would show little."""
    with FakeGpu():
        policy = policy_on_gpu(tiny, torch.bfloat16)
        with pytest.raises(RuntimeError, match="device"):
            policy(token_batch(rows(), policy.layout), 1.0)
