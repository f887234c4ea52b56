"""The repair of tied output layers after a reload."""

from __future__ import annotations

import pytest
import torch

from rlsys.rollout.engine.receiver import share_tied_head


def tied_model() -> torch.nn.Module:
    """A model whose output layer has the embedding's weight, as vLLM names them."""
    model = torch.nn.Module()
    model.lm_head, model.model = torch.nn.Linear(4, 8, bias=False), torch.nn.Module()
    model.model.embed_tokens = torch.nn.Embedding(8, 4)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def test_a_tied_output_layer_multiplies_with_the_embedding_s_new_copy() -> None:
    model = tied_model()
    model.lm_head.cpu_linear, model.model.embed_tokens.cpu_linear = "old", "new"
    share_tied_head(model)
    assert model.lm_head.cpu_linear == "new"


@pytest.mark.parametrize("model", [tied_model(), torch.nn.Linear(2, 2)], ids=["tied, on a GPU", "no output layer"])
def test_without_packed_copies_there_is_nothing_to_repair(model: torch.nn.Module) -> None:
    share_tied_head(model)
    assert not any(hasattr(module, "cpu_linear") for module in model.modules())
