"""Token log-probabilities of tiny models against the plain full-vocabulary computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlsys.algorithms.aggregation import registry
from rlsys.algorithms.inputs import LossInputs
from rlsys.algorithms.loss import Objective
from rlsys.config.algorithm_schema import AlgorithmConfig, KlConfig
from rlsys.config.build_schema import ModelBuild
from rlsys.models.packing import LAYOUTS, TokenBatch, TokenRow, microbatches, token_batch
from rlsys.models.padding import pad
from rlsys.models.policy import PolicyModel
from rlsys.models.tiny import build_model
from rlsys.types import Coefficients
from tests.unit.conftest import TINY

LENGTHS = (9, 4, 7, 2, 9, 6, 5)
PROMPTS = (3, 1, 5, 1, 2, 3, 3)
GROUPS = (0, 1, 2, 3, 4, 0, 0)  # the three of group 0 have one prompt
KINDS = [(name, tied) for name in ("qwen2", "qwen3", "llama") for tied in (True, False)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{'tied' if kind[1] else 'untied'}")
def kind(request: pytest.FixtureRequest) -> tuple[str, bool]:
    return request.param


@pytest.fixture(scope="module")
def model(kind: tuple[str, bool], tokenizer: Any) -> PolicyModel:
    return make_model(tokenizer, *kind)


@pytest.fixture(scope="module")
def qwen2(tokenizer: Any) -> PolicyModel:
    return make_model(tokenizer, "qwen2", tied=True)


def make_model(tokenizer: Any, architecture: str, tied: bool, packing: str = "auto") -> PolicyModel:
    hf = build_model(ModelBuild(architecture=architecture, tie_word_embeddings=tied, **TINY), tokenizer, seed=1)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)  # fresh weights are near zero: everything would look uniform
    return PolicyModel(hf, packing).eval()


def rows() -> list[TokenRow]:
    """Ragged trajectories, some of one prompt."""
    generator = np.random.default_rng(0)
    made = []
    for length, prompt, group in zip(LENGTHS, PROMPTS, GROUPS, strict=True):
        ids = generator.integers(5, 90, size=length)
        if made and group == 0:
            ids[:prompt] = made[0].token_ids[:prompt]
        made.append(TokenRow(ids, np.arange(length) >= prompt, group))
    return made


def batch_for(model: PolicyModel, chosen: list[TokenRow] | None = None) -> TokenBatch:
    return token_batch(rows() if chosen is None else chosen, model.layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equal_to_the_full_log_softmax(tokenizer: Any, kind: tuple[str, bool], layout: str, temperature: float) -> None:
    """Every layout, against each trajectory alone through transformers' own forward."""
    plain = make_model(tokenizer, *kind, packing="padded").hf
    model = make_model(tokenizer, *kind, packing=layout)
    assert model.layout == layout
    batch = batch_for(model)
    with torch.no_grad():
        logprobs, entropy = model(batch, temperature)
        for number, row in enumerate(rows()):
            logits = plain(input_ids=torch.from_numpy(row.token_ids)[None]).logits[0].float()
            full = torch.log_softmax(logits / temperature, dim=-1)
            for column in row.loss_mask.nonzero()[0].tolist():
                before = full[column - 1]  # the distribution after the prefix, which token `column` was drawn from
                expected = before[row.token_ids[column]].item(), -(before.exp() * before).sum().item()
                assert logprobs[number, column].item() == pytest.approx(expected[0], abs=1e-5)
                assert entropy[number, column].item() == pytest.approx(expected[1], abs=1e-5)
    assert not logprobs[~batch.loss_mask].any()
    assert not entropy[~batch.loss_mask].any()
    assert logprobs[batch.loss_mask].std() > 0.1  # the model is far from uniform, or this test would see nothing


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_layout_gives_the_same_gradient(tokenizer: Any, kind: tuple[str, bool], checkpointing: bool) -> None:
    found = {}
    for layout in LAYOUTS:
        model = make_model(tokenizer, *kind, packing=layout)
        if checkpointing:
            model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        logprobs, _ = model(batch_for(model), 1.0)
        weights = torch.linspace(-1.0, 1.0, logprobs.numel()).view(logprobs.shape)
        (logprobs * weights).sum().backward()
        found[layout] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    for layout in ("shared_prompt", "packed"):
        assert (found[layout] - found["padded"]).norm() / found["padded"].norm() < 1e-5


def test_auto_takes_the_layout_without_waste(qwen2: PolicyModel) -> None:
    assert qwen2.layout == "shared_prompt"
    assert batch_for(qwen2).input_ids.numel() == sum(LENGTHS) - 2 * 3  # two of three copies of a prompt of 3 are saved


def test_the_temperature_counts(qwen2: PolicyModel) -> None:
    batch = batch_for(qwen2)
    with torch.no_grad():
        (warm, warm_entropy), (cold, cold_entropy) = qwen2(batch, 1.0), qwen2(batch, 0.5)
    assert (warm - cold)[batch.loss_mask].abs().max() > 0.1
    assert cold_entropy.sum() < warm_entropy.sum()


def test_the_company_of_a_row_changes_nothing(model: PolicyModel) -> None:
    with torch.no_grad():
        together, entropy = model(batch_for(model), 1.0)
        for number, row in enumerate(rows()):
            alone, alone_entropy = model(batch_for(model, [row]), 1.0)
            assert torch.allclose(together[number, : len(row.token_ids)], alone[0], atol=1e-5)
            assert torch.allclose(entropy[number, : len(row.token_ids)], alone_entropy[0], atol=1e-5)


def test_the_entropy_carries_no_gradient(qwen2: PolicyModel) -> None:
    logprobs, entropy = qwen2(batch_for(qwen2), 1.0)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def gradient(model: PolicyModel, parts: list[list[int]], aggregation: str) -> torch.Tensor:
    """The step's whole gradient, accumulated over microbatches of the rows."""
    every = rows()
    generator = np.random.default_rng(1)
    old, reference = ([generator.normal(-3, 1, length) for length in LENGTHS] for _ in range(2))
    advantages = [np.full(length, value) for length, value in zip(LENGTHS, generator.normal(size=7), strict=True)]
    lengths = torch.tensor([int(row.loss_mask.sum()) for row in every])
    weights = registry.get(aggregation)(lengths, torch.arange(len(LENGTHS))).float()
    loss = Objective(AlgorithmConfig(kl=KlConfig(0.1)))
    model.zero_grad()
    for chosen in parts:
        batch = batch_for(model, [every[i] for i in chosen])
        logprobs, _ = model(batch, 1.0)
        columns = [pad([values[i] for i in chosen], torch.float32) for values in (old, advantages, reference)]
        inputs = LossInputs(logprobs, columns[0], columns[1], batch.loss_mask, columns[2])
        loss(inputs, weights[chosen], Coefficients(0.1, 0.0), int(lengths.sum())).loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_the_gradient_is_the_same_under_any_split(tokenizer: Any, aggregation: str, layout: str) -> None:
    fresh = PolicyModel(build_model(ModelBuild(**TINY), tokenizer, seed=1), layout).eval()
    whole = gradient(fresh, [list(range(len(LENGTHS)))], aggregation)
    split = microbatches(rows(), 14, layout)
    assert len(split) > 2
    assert whole.norm() > 0.05
    for parts in (split, [[i] for i in range(len(LENGTHS))]):
        difference = gradient(fresh, parts, aggregation) - whole
        assert difference.norm() / whole.norm() < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_batch_has_a_gradient_of_zero(tokenizer: Any, layout: str) -> None:
    model = make_model(tokenizer, "qwen2", tied=True, packing=layout)
    logprobs, _ = model(batch_for(model, [TokenRow(np.ones(2, dtype=np.int32), np.zeros(2, dtype=bool))]), 1.0)
    logprobs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())  # every rank's collectives line up
    assert not any(parameter.grad.any() for parameter in model.parameters())
