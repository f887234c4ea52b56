"""The auxiliary loss of a mixture of experts is transformers' own, in value and gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rlsys.errors import ConfigError
from rlsys.models import trial
from rlsys.models.balance import Balance, balance_of
from rlsys.models.checkpointing import checkpoint_activations
from rlsys.models.packing import TokenRow, token_batch
from rlsys.models.policy import PolicyModel
from rlsys.models.trial import try_model
from tests.unit.models.test_trial import copy_of, rows

FAMILIES = ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "phimoe"]


def test_by_hand() -> None:
    """Two tokens and two experts: both go to the first one, which has the probabilities 0.8 and 0.6."""
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]))
    padded = torch.tensor([[1, 1, 0]])
    assert Balance(0.1, 1).loss([logits], padded) == pytest.approx(2 * (1.0 * 0.7 + 0.0 * 0.3))
    assert Balance(0.1, 1).loss([logits], None) == pytest.approx(2 * (2 / 3 * 0.5 + 1 / 3 * 0.5))
    assert Balance(0.1, 2).loss([logits, logits], None) == pytest.approx(2)  # all tokens to all experts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_family(family: str, checkpoints: bool) -> None:
    hf = copy_of(family, output_router_logits=True, router_aux_loss_coef=0.3)
    own = copy.deepcopy(hf)
    model = PolicyModel(hf, "padded")
    assert model.traits.balance == balance_of(hf.config)
    if checkpoints:
        checkpoint_activations(hf)
    batch = token_batch(rows(hf.get_input_embeddings().weight.shape[0]), "padded")
    model(batch, 1.0)
    assert model.balance_loss is not None
    model.balance_loss.backward()
    own.set_attn_implementation("eager")
    output = own(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, output_router_logits=True)
    (0.3 * output.aux_loss).backward()
    torch.testing.assert_close(model.balance_loss.detach(), 0.3 * output.aux_loss.detach(), rtol=1e-5, atol=1e-6)
    expected = {name: parameter.grad for name, parameter in own.named_parameters() if parameter.grad is not None}
    assert any("gate" in name or "router" in name for name in expected)
    for name, parameter in hf.named_parameters():
        if name in expected:
            rounding = 1e-3 * float(expected[name].abs().max())
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=rounding)


def test_without_gradient_or_without_being_asked_there_is_none() -> None:
    batch = token_batch([TokenRow(np.arange(1, 9), np.arange(8) > 3)], "shared_prompt")
    for asked in (True, False):
        model = PolicyModel(copy_of("qwen3_moe", output_router_logits=asked))
        model(batch, 1.0)
        assert (model.balance_loss is not None) == asked
        with torch.no_grad():
            model(batch, 1.0)
        assert model.balance_loss is None
    assert PolicyModel(copy_of("qwen2", output_router_logits=True)).traits.balance is None


def changed(hf: Any, change: Callable[[Any], None]) -> Any:
    """Let a model change its output where its auxiliary loss is asked for."""
    forward = hf.forward

    def otherwise(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if kwargs.get("output_router_logits"):
            change(output)
        return output

    hf.forward = otherwise
    return hf


def another_loss(output: Any) -> None:
    output.aux_loss = output.aux_loss * 1.1


def a_failure(output: Any) -> None:
    raise IndexError("no such layer")


@pytest.mark.parametrize(
    ("change", "message"), [(another_loss, "the model's is another one"), (a_failure, "IndexError: no such layer")]
)
def test_what_cannot_be_compared_is_refused_with_its_reason(change: Callable[[Any], None], message: str) -> None:
    with pytest.raises(ConfigError, match=f"auxiliary loss .*{message}.*output_router_logits to false"):
        try_model(changed(copy_of("mixtral", output_router_logits=True), change))


def test_a_coefficient_under_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "balance_of", lambda text: None)
    with pytest.raises(ConfigError, match=r"config\.json names its parts otherwise"):
        try_model(copy_of("mixtral", output_router_logits=True))
