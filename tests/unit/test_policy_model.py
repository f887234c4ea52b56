"""Token log-probabilities of tiny models against the plain full-vocabulary computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlsys.algorithms.aggregation import registry
from rlsys.algorithms.loss import Objective
from rlsys.algorithms.policy_losses import LossInputs
from rlsys.batch import TokenBatch, pad, split_microbatches, token_batch
from rlsys.config import AlgorithmConfig, KlConfig, ModelBuild
from rlsys.models.policy import PolicyModel
from rlsys.models.tiny import build_model
from rlsys.types import Coefficients

from .conftest import TINY

LENGTHS = (9, 4, 7, 2, 9)
PROMPTS = (3, 1, 5, 1, 2)
KINDS = [(name, tied) for name in ("qwen2", "qwen3", "llama") for tied in (True, False)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{'tied' if kind[1] else 'untied'}")
def model(request: pytest.FixtureRequest, tokenizer: Any) -> PolicyModel:
    return make_model(tokenizer, *request.param)


@pytest.fixture(scope="module")
def qwen2(tokenizer: Any) -> PolicyModel:
    return make_model(tokenizer, "qwen2", tied=True)


def make_model(tokenizer: Any, architecture: str, tied: bool) -> PolicyModel:
    hf = build_model(ModelBuild(architecture=architecture, tie_word_embeddings=tied, **TINY), tokenizer, seed=1)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)  # fresh weights are near zero: everything would look uniform
    return PolicyModel(hf).eval()


def rows() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ragged token ids and loss masks."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, 90, size=length) for length in LENGTHS]
    return ids, [np.arange(length) >= prompt for length, prompt in zip(LENGTHS, PROMPTS, strict=True)]


def scores(model: PolicyModel, batch: TokenBatch, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    return model(batch.input_ids, batch.attention_mask, batch.loss_mask, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equal_to_the_full_log_softmax(model: PolicyModel, temperature: float) -> None:
    batch = token_batch(*rows())
    with torch.no_grad():
        logprobs, entropy = scores(model, batch, temperature)
        logits = model.hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
    full = torch.log_softmax(logits / temperature, dim=-1)
    for row, column in batch.loss_mask.nonzero().tolist():
        before = full[row, column - 1]  # the distribution after the prefix, which token `column` was drawn from
        assert logprobs[row, column].item() == pytest.approx(before[batch.input_ids[row, column]].item(), abs=1e-5)
        assert entropy[row, column].item() == pytest.approx(-(before.exp() * before).sum().item(), abs=1e-5)
    assert not logprobs[~batch.loss_mask].any()
    assert not entropy[~batch.loss_mask].any()
    assert logprobs[batch.loss_mask].std() > 0.1  # the model is far from uniform, or this test would see nothing


def test_the_temperature_counts(qwen2: PolicyModel) -> None:
    batch = token_batch(*rows())
    with torch.no_grad():
        (warm, warm_entropy), (cold, cold_entropy) = scores(qwen2, batch, 1.0), scores(qwen2, batch, 0.5)
    assert (warm - cold)[batch.loss_mask].abs().max() > 0.1
    assert cold_entropy.sum() < warm_entropy.sum()


def test_right_padding_changes_nothing(model: PolicyModel) -> None:
    ids, masks = rows()
    with torch.no_grad():
        together, entropy = scores(model, token_batch(ids, masks))
        for row, length in enumerate(LENGTHS):
            alone, alone_entropy = scores(model, token_batch([ids[row]], [masks[row]]))
            assert torch.allclose(together[row, :length], alone[0], atol=1e-5)
            assert torch.allclose(entropy[row, :length], alone_entropy[0], atol=1e-5)


def test_the_entropy_carries_no_gradient(qwen2: PolicyModel) -> None:
    logprobs, entropy = scores(qwen2, token_batch(*rows()))
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def gradient(model: PolicyModel, microbatches: list[list[int]], aggregation: str) -> torch.Tensor:
    """The step's whole gradient, accumulated over `microbatches` of the rows."""
    ids, masks = rows()
    generator = np.random.default_rng(1)
    old, reference = ([generator.normal(-3, 1, length) for length in LENGTHS] for _ in range(2))
    advantages = [np.full(length, value) for length, value in zip(LENGTHS, (1.0, -0.5, 0.3, -1.0, 0.7), strict=True)]
    lengths = torch.tensor([int(mask.sum()) for mask in masks])
    weights = registry.get(aggregation)(lengths, torch.arange(len(LENGTHS))).float()
    loss = Objective(AlgorithmConfig(kl=KlConfig(0.1)))
    model.zero_grad()
    for chosen in microbatches:
        batch = token_batch([ids[i] for i in chosen], [masks[i] for i in chosen])
        logprobs, _ = scores(model, batch)
        columns = [pad([values[i] for i in chosen], torch.float32) for values in (old, advantages, reference)]
        inputs = LossInputs(logprobs, columns[0], columns[1], batch.loss_mask, columns[2])
        loss(inputs, weights[chosen], Coefficients(0.1, 0.0), int(lengths.sum())).loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_the_gradient_is_the_same_under_any_split(tokenizer: Any, aggregation: str) -> None:
    fresh = PolicyModel(build_model(ModelBuild(**TINY), tokenizer, seed=1)).eval()
    whole = gradient(fresh, [list(range(len(LENGTHS)))], aggregation)
    split = split_microbatches(LENGTHS, max_tokens=14)
    assert len(split) > 2
    assert whole.norm() > 0.05
    for microbatches in (split, [[i] for i in range(len(LENGTHS))]):
        difference = gradient(fresh, microbatches, aggregation) - whole
        assert difference.norm() / whole.norm() < 1e-6


def test_an_empty_batch_has_a_gradient_of_zero(qwen2: PolicyModel) -> None:
    qwen2.zero_grad()
    logprobs, _ = scores(qwen2, token_batch([np.ones(2, dtype=np.int32)], [np.zeros(2, dtype=bool)]))
    logprobs.sum().backward()
    assert all(parameter.grad is not None for parameter in qwen2.parameters())  # every rank's collectives line up
    assert not any(parameter.grad.any() for parameter in qwen2.parameters())
