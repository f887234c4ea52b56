"""Checkpointed activations: the same numbers and gradients as without, and no noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlsys.models.checkpointing import checkpoint_activations
from rlsys.models.packing import token_batch
from rlsys.models.policy import PolicyModel
from tests.unit.models.test_trial import copy_of, rows

NOISY = {"dropout": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5, "layerdrop": 0.5}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("opt", NOISY),
    ("gpt2", {}),
    ("phi3", {"attention_dropout": 0.5}),
    ("phimoe", {}),
]


@pytest.mark.parametrize(("family", "settings"), CASES, ids=[family for family, _ in CASES])
def test_numbers_and_gradients_are_those_without_checkpoints(family: str, settings: dict[str, Any]) -> None:
    model = PolicyModel(copy_of(family, **settings))
    batch = token_batch(rows(60), model.layout)

    def computed() -> list[torch.Tensor]:
        logprobs, _ = model(batch, 1.0)
        return [logprobs, *torch.autograd.grad(logprobs.sum(), list(model.parameters()), allow_unused=True)]

    plain = computed()
    checkpoint_activations(model.hf)
    assert any(module.training for module in model.modules())
    for one, other in zip(plain, computed(), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-4, rtol=1e-4)
