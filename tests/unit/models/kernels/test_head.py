"""The output layer in chunks over the vocabulary: the same numbers and gradients as all logits at once (1e-5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rlsys.config.build_schema import ModelBuild
from rlsys.errors import ConfigError
from rlsys.models.kernels import head as head_module
from rlsys.models.kernels.head import TokenHead, dense_logprobs, use_token_head
from rlsys.models.kernels.logits import LogitTransform
from rlsys.models.tiny import build_model
from tests.unit.conftest import TINY

TOKENS, HIDDEN, VOCABULARY = 7, 8, 1000


def make(bias: bool, dtype: torch.dtype = torch.float32) -> tuple[TokenHead, torch.Tensor, torch.Tensor]:
    """A head, states with gradient, and targets at both ends of the vocabulary among others."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    layer.__class__ = TokenHead
    states = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    return layer, states, torch.tensor([0, 999, 255, 256, 511, 512, 700])  # type: ignore[return-value]


def answers(
    layer: TokenHead, states: torch.Tensor, targets: torch.Tensor, by_entropy: float
) -> tuple[torch.Tensor, ...]:
    """Log-probabilities, entropies, and the gradients of a weighted sum of both."""
    logprobs, entropy = layer(states, targets, 0.7, entropy_gradient=by_entropy != 0)
    weights = torch.linspace(-1, 2, TOKENS)
    loss = (weights * logprobs).sum() + by_entropy * (weights.flip(0) * entropy).sum()
    return logprobs, entropy, *torch.autograd.grad(loss, [states, *layer.parameters()])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("by_entropy", [0.0, 0.5])
def test_chunks_are_the_whole(monkeypatch: pytest.MonkeyPatch, bias: bool, by_entropy: float) -> None:
    layer, states, targets = make(bias)
    whole = answers(layer, states, targets, by_entropy)
    monkeypatch.setattr(head_module, "DENSE_ELEMENTS", 0)
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 1)  # 256 entries a chunk, the last one shorter
    for expected, found in zip(whole, answers(layer, states, targets, by_entropy), strict=True):
        assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_the_dense_path_is_the_log_softmax() -> None:
    layer, states, targets = make(bias=True)
    full = torch.log_softmax(nn.functional.linear(states, layer.weight, layer.bias) / 0.7, dim=-1)
    logprobs, entropy = layer(states, targets, 0.7)
    assert torch.allclose(logprobs, full.gather(1, targets[:, None])[:, 0], atol=1e-5)
    assert torch.allclose(entropy, -(full.exp() * full).sum(1), atol=1e-5)


@pytest.mark.parametrize("dense", [True, False])
def test_the_entropy_carries_a_gradient_only_when_asked_to(monkeypatch: pytest.MonkeyPatch, dense: bool) -> None:
    if not dense:
        monkeypatch.setattr(head_module, "DENSE_ELEMENTS", 0)
    layer, states, targets = make(bias=False)
    assert not layer(states, targets, 1.0)[1].requires_grad
    assert layer(states, targets, 1.0, entropy_gradient=True)[1].requires_grad
    with torch.no_grad():
        assert not layer(states, targets, 1.0, entropy_gradient=True)[0].requires_grad


@pytest.mark.parametrize("dense", [True, False])
def test_bfloat16_is_reduced_in_float32(monkeypatch: pytest.MonkeyPatch, dense: bool) -> None:
    if not dense:
        monkeypatch.setattr(head_module, "DENSE_ELEMENTS", 0)
    layer, states, targets = make(bias=False, dtype=torch.bfloat16)
    logprobs, _ = layer(states, targets, 1.0)
    assert logprobs.dtype == torch.float32
    logits = nn.functional.linear(states, layer.weight).float()
    assert torch.allclose(logprobs, dense_logprobs(logits, targets, False)[0], atol=1e-5)
    gradient = torch.autograd.grad(logprobs.sum(), [states, layer.weight])
    assert [g.dtype for g in gradient] == [torch.bfloat16] * 2


def test_extreme_logits_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "DENSE_ELEMENTS", 0)
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 1)
    layer, states, targets = make(bias=False)
    found = answers(layer, (1e4 * states.detach()).requires_grad_(), targets, 0.5)
    assert all(values.isfinite().all() for values in found)


def test_no_tokens_have_a_gradient_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "DENSE_ELEMENTS", -1)
    layer, states, targets = make(bias=False)
    logprobs, _ = layer(states[:0], targets[:0], 1.0)
    assert logprobs.shape == (0,)
    gradient = torch.autograd.grad(logprobs.sum(), [layer.weight])[0]
    assert torch.equal(gradient, torch.zeros_like(layer.weight))


@pytest.mark.parametrize("transform", [LogitTransform(0.25), LogitTransform(1.0, 3.0), LogitTransform(0.5, 3.0)])
@pytest.mark.parametrize("by_entropy", [0.0, 0.5])
def test_what_a_model_does_to_its_logits(
    monkeypatch: pytest.MonkeyPatch, transform: LogitTransform, by_entropy: float
) -> None:
    """The dense path and chunks, against the formula and torch's own gradients."""
    layer, states, targets = make(bias=True)
    layer.transform = transform
    logits = nn.functional.linear(states, layer.weight, layer.bias) * transform.scale
    if transform.softcap is not None:
        logits = 3.0 * torch.tanh(logits / 3.0)
    full = torch.log_softmax(logits / 0.7, dim=-1)
    logprobs, entropy = full.gather(1, targets[:, None])[:, 0], -(full.exp() * full).sum(1)
    weights = torch.linspace(-1, 2, TOKENS)
    loss = (weights * logprobs).sum() + by_entropy * (weights.flip(0) * entropy).sum()
    expected = [logprobs, entropy, *torch.autograd.grad(loss, [states, *layer.parameters()])]
    dense = answers(layer, states, targets, by_entropy)
    monkeypatch.setattr(head_module, "DENSE_ELEMENTS", 0)
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 1)
    for found in (dense, answers(layer, states, targets, by_entropy)):
        for one, other in zip(expected, found, strict=True):
            assert torch.allclose(one, other, atol=1e-5, rtol=1e-5)


def test_an_output_layer_that_is_not_linear_is_refused(tokenizer: Any) -> None:
    hf = build_model(ModelBuild(**TINY), tokenizer, seed=0)
    hf.lm_head = nn.Identity()
    with pytest.raises(ConfigError, match="its output layer is a Identity"):
        use_token_head(hf, LogitTransform())


def test_without_targets_it_is_a_linear_layer() -> None:
    layer, states, _ = make(bias=True)
    assert torch.allclose(layer(states), nn.functional.linear(states, layer.weight, layer.bias), atol=1e-5)
